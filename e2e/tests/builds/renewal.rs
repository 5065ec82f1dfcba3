//! Builds that follow their base images.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use serde_json::{Value, json};

use crate::site::{Site, attempt, build, with_site};

/// The shortest interval that may be asked for, and the time of a build after it.
const RENEWED: Duration = Duration::from_secs(180);

fn base(text: &str) -> String {
    format!("FROM lab.test/busybox:1\nRUN echo {text} >/base\n")
}

/// Waits for the end of an attempt of `app`, and gives what the image says.
fn said(site: &Site, number: i64) -> Result<(Value, String)> {
    let build = wait_for(&format!("attempt {number} of app"), RENEWED, || {
        site.builds.check()?;
        let build = site.get("app")?;
        let last = attempt(&build);
        Ok((last["number"] == number && last["completionTime"].is_string()).then_some(build))
    })
    .with_context(|| format!("{:#}", site.get("app").unwrap_or_default()["status"]))?;
    site.until("app", "Ready", "True")?;
    Ok((build, site.run("app:1", "one", true)?))
}

#[test]
fn a_build_is_repeated_when_its_base_image_moves() {
    with_site(&[], |site| {
        let here = json!({"kubernetes.io/hostname": "one"});
        let mut first = build("first", &base("old"), json!({"nodeSelector": here}));
        site.apply(&first)?;
        site.until("first", "Ready", "True")?;
        let spec = json!({"nodeSelector": here, "triggers": {"baseImage": {"interval": "1m"}}});
        site.apply(&build("app", "FROM first:1\nCMD [\"cat\", \"/base\"]\n", spec))?;
        let (done, text) = said(site, 1)?;
        ensure!(text == "old\n", "{text}");
        let digest = done["status"]["digest"].clone();

        first["spec"]["source"]["inline"]["dockerfile"] = json!(base("new"));
        site.apply(&first)?;
        let (done, text) = said(site, 2)?;
        ensure!(text == "new\n" && done["status"]["digest"] != digest, "{text}: {:#}", done["status"]);
        ensure!(attempt(&done)["trigger"] == "BaseImage", "{:#}", attempt(&done));
        let triggers = &done["status"]["triggers"];
        ensure!(triggers["baseImages"] == triggers["latestBaseImages"], "{triggers:#}");
        site.clean()
    });
}
