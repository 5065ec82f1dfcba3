//! What steps are given and what a build tells of itself: credentials, certificates, proxies, events.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Registry;
use serde_json::json;

use crate::secrets::files;
use crate::site::{GONE, Site, attempt, build, with_site};

/// What the registry is asked with, as it travels.
const PASSWORD: &str = "dXNlcjpzZWNyZXQ=";

/// Events on a build by reason, with their notes.
fn events(site: &Site, name: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let field = format!("--field-selector=involvedObject.name={name},involvedObject.kind=ImageBuild");
    let all = site.cluster.get(&["events", &field])?;
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in all["items"].as_array().context("no list of events")? {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        told.entry(text("reason")).or_default().push(text("message"));
    }
    Ok(told)
}

/// A base image behind a password is pulled by the node, whatever network the steps have; they get certificates and
/// proxies, and neither is part of the image.
#[test]
fn steps_get_what_is_theirs_and_events_tell_the_story() {
    with_site(&[], |site| {
        let _registry = Registry::start(&site.cluster)?;
        let ca = json!({"name": "lab", "key": "ca.crt"});
        let here = json!({"kubernetes.io/hostname": "one"});
        let dockerfile = "FROM lab.test/busybox:1\nRUN echo private >/base\n";
        let mut base = build("base", dockerfile, json!({"caBundle": ca, "nodeSelector": here}));
        base["spec"]["output"]["push"] =
            json!({"registry": format!("{}/team", Registry::ADDRESS), "credentials": {"name": "pusher"}});
        site.apply(&base)?;
        site.until("base", "Ready", "True")?;
        ensure!(events(site, "base")?.contains_key("Pushed"), "{:?}", events(site, "base")?);

        let dockerfile = format!(
            "FROM {}/team/base:1\n\
             RUN --mount=type=secret,id=ca-bundle grep -q BEGIN /run/secrets/ca-bundle && echo trusted >/trust\n\
             RUN test ${{#http_proxy}} = 22 -a ${{#NO_PROXY}} = 15 && echo told >/proxy\n\
             CMD [\"cat\", \"/base\", \"/trust\", \"/proxy\"]\n",
            Registry::ADDRESS
        );
        let spec = json!({
            "caBundle": ca, "network": "Egress", "nodeSelector": here, "imagePullSecrets": [{"name": "pusher"}],
            "proxy": {"httpProxy": "http://proxy.test:3128", "noProxy": [".svc", "10.0.0.0/8"]},
            "attestations": {"provenance": "Max"},
        });
        site.apply(&build("app", &dockerfile, spec))?;
        site.until("app", "Ready", "True")?;
        let said = site.run("app:1", "one", true)?;
        ensure!(said == "private\ntrusted\ntold\n", "{said}");

        // The registry refuses whoever has no password, with a network of its steps too.
        let there = json!({"kubernetes.io/hostname": "two"});
        let stranger = json!({"caBundle": ca, "network": "Egress", "retries": 0, "nodeSelector": there});
        site.apply(&build("stranger", &format!("FROM {}/team/base:1\n", Registry::ADDRESS), stranger))?;
        let failure = attempt(&site.until("stranger", "Succeeded", "False")?.0)["failure"].clone();
        ensure!(failure["reason"] == "AccessDenied", "{failure}");

        // In the image is neither proxy nor certificate, and with it the statement of how it was made.
        let one = &site.nodes[0];
        let archive = one.lab.root().join("app.tar");
        let export =
            ["images", "export", "--all-platforms", &archive.to_string_lossy(), "docker.io/library/app:1"];
        one.lab.ctr(&export)?;
        let authority =
            site.cluster.kubectl(&["get", "configmap", "lab", "-o", "jsonpath={.data.ca\\.crt}"])?;
        let certificate = authority.lines().nth(1).context("no certificate")?;
        let mut statements = 0;
        for entry in tar::Archive::new(fs::File::open(&archive)?).entries()? {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry?, &mut bytes)?;
            let has = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
            ensure!(!has(certificate), "the image has the certificates");
            let statement = has("https://slsa.dev/provenance/");
            ensure!(statement || !has("proxy.test"), "{}", String::from_utf8_lossy(&bytes));
            statements += usize::from(statement);
        }
        ensure!(statements > 0, "no statement of how it was made goes with the image");
        fs::remove_file(archive)?;
        // Nor has any disk of a guest the password.
        files(one.lab.root(), &one.kubelet_root(), PASSWORD)?;

        let told = wait_for("the events of app", GONE, || {
            let told = events(site, "app")?;
            Ok(["Pulling", "Pulled", "Imported", "ImageReady"]
                .iter()
                .all(|one| told.contains_key(*one))
                .then_some(told))
        })
        .with_context(|| format!("{:?}", events(site, "app")))?;
        eprintln!("{told:#?}");
        let base = format!("{}/team/base:1", Registry::ADDRESS);
        ensure!(told["Pulling"] == [format!("Pulling base image {base}")], "{told:?}");
        ensure!(
            told["Imported"].len() == 1 && told["Imported"][0].contains("docker.io/library/app:1"),
            "{told:?}"
        );
        site.clean()
    });
}
