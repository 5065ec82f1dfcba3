//! Results that go to a registry or into a volume, with and without nodes that get them too.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::Lab;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Registry;
use serde_json::{Value, json};

use crate::site::{Site, attempt, build, condition, with_site};

const DOCKERFILE: &str = "FROM lab.test/busybox:1\nRUN echo delivered >/said\nCMD [\"cat\", \"/said\"]\n";
/// Made here for other processors: no step of theirs is run.
const WIDE: &str = "FROM --platform=$BUILDPLATFORM lab.test/busybox:1 AS made\nARG TARGETARCH\n\
    RUN echo for $TARGETARCH >/for\nFROM scratch\nCOPY --from=made /for /for\n";

/// A build that is pushed with these credentials.
fn pushed(name: &str, secret: &str, spec: Value) -> Value {
    let mut object = build(name, DOCKERFILE, spec);
    object["spec"]["caBundle"] = json!({"name": "lab", "key": "ca.crt"});
    let push = json!({"registry": format!("{}/team", Registry::ADDRESS), "credentials": {"name": secret}});
    object["spec"]["output"]["push"] = push;
    object
}

/// Waits for a failure of the newest attempt, which may be followed by another.
fn failed(site: &Site, name: &str) -> Result<Value> {
    wait_for(&format!("a failure of {name}"), Duration::from_secs(150), || {
        let failure = attempt(&site.get(name)?)["failure"].clone();
        Ok(failure["reason"].is_string().then_some(failure))
    })
}

/// Fails unless the status has the sizes of what the registry has.
fn sizes_are(build: &Value, manifest: &Value) -> Result<()> {
    let layers = manifest["layers"].as_array().context("no layers")?;
    let compressed: i64 = layers.iter().filter_map(|layer| layer["size"].as_i64()).sum();
    let sizes = &build["status"]["sizes"];
    ensure!(
        sizes["layers"] == layers.len() && sizes["compressedBytes"] == compressed,
        "{sizes} of {manifest:#}"
    );
    ensure!(sizes["unpackedBytes"].as_i64() > Some(compressed), "{sizes}");
    Ok(())
}

fn stages(build: &Value) -> Vec<String> {
    let all = attempt(build)["stages"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|stage| stage["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_result_is_pushed_to_a_registry() {
    with_site(&[], |site| {
        let registry = Registry::start(&site.cluster)?;
        // To the registry and to no node.
        site.apply(&pushed("app", "pusher", json!({})))?;
        let (done, took) = site.until("app", "Ready", "True")?;
        eprintln!("apply to pushed: {took:.1?}; {:#}", attempt(&done)["stages"]);
        let status = &done["status"];
        let digest = status["digest"].as_str().context("no digest")?;
        ensure!(registry.digest("team/app:1")? == digest, "{status:#}");
        let image = format!("{}/team/app:1", Registry::ADDRESS);
        ensure!(status["image"] == image && status["nodesSelected"] == 0, "{status:#}");
        let message = condition(&done, "Ready")["message"].to_string();
        ensure!(message.contains(&image) && message.contains(digest), "{message}");
        ensure!(stages(&done).ends_with(&["Push".to_owned()]), "{:?}", stages(&done));
        for node in &site.nodes {
            ensure!(!node.lab.ctr(&["images", "ls", "-q"])?.contains("app:1"), "a node got it");
        }
        // Layers are compressed, the base image's too, which was not on this node.
        let manifest = registry.manifest("team/app:1")?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            let kind = layer["mediaType"].as_str().unwrap_or_default();
            ensure!(kind.ends_with("+gzip"), "{manifest:#}");
        }
        sizes_are(&done, &manifest)?;

        // To both, under one digest.
        let both = json!({"output": {"images": ["both:1"], "nodes": {}}});
        site.apply(&pushed("both", "pusher", both))?;
        let (done, _) = site.until("both", "Ready", "True")?;
        ensure!(done["status"]["image"] == "docker.io/library/both:1", "{:#}", done["status"]);
        ensure!(done["status"]["digest"] == registry.digest("team/both:1")?, "{:#}", done["status"]);
        ensure!(site.run("both:1", "two", true)? == "delivered\n");

        // For several platforms, under one name.
        let mut wide = pushed("wide", "pusher", json!({"platforms": ["linux/amd64", "linux/arm64"]}));
        wide["spec"]["source"]["inline"]["dockerfile"] = WIDE.into();
        site.apply(&wide)?;
        let (done, _) = site.until("wide", "Ready", "True")?;
        ensure!(done["status"]["digest"] == registry.digest("team/wide:1")?, "{:#}", done["status"]);
        let index = registry.manifest("team/wide:1")?;
        let images = index["manifests"].as_array().context("no index")?.iter();
        let names: Vec<&str> =
            images.filter_map(|image| image["platform"]["architecture"].as_str()).collect();
        ensure!(names == ["amd64", "arm64"], "{index:#}");

        // What is refused is not tried again, and says what to look at.
        registry.secret("stranger", "hunter2")?;
        site.apply(&pushed("refused", "stranger", json!({})))?;
        let (done, _) = site.until("refused", "Stalled", "True")?;
        let failure = attempt(&done)["failure"].clone();
        ensure!(failure["reason"] == "AccessDenied" && attempt(&done)["number"] == 1, "{failure}");
        let message = failure["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("spec.output.push.credentials") && !message.contains("hunter2"),
            "{message}"
        );

        // What is away may come back.
        registry.daemon.stop(false)?;
        site.apply(&pushed("patient", "pusher", json!({})))?;
        let failure = failed(site, "patient")?;
        ensure!(failure["reason"] == "RegistryUnavailable", "{failure}");
        registry.serve()?;
        let (done, _) = site.until("patient", "Ready", "True")?;
        ensure!(attempt(&done)["trigger"] == "Retry", "{:#}", attempt(&done));
        ensure!(registry.digest("team/patient:1")? == done["status"]["digest"], "{:#}", done["status"]);
        site.clean()
    });
}

#[test]
fn a_build_that_is_cancelled_while_it_is_pushed_ends_and_has_given_no_name() {
    with_site(&[], |site| {
        let registry = Registry::start(&site.cluster)?;
        let signal = |name: &str| {
            let pid = registry.daemon.pid().context("no registry")?.to_string();
            let done = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status()?;
            ensure!(done.success(), "kill: {done}");
            Ok(())
        };
        // It takes connections and never answers.
        signal("STOP")?;
        site.apply(&pushed("late", "pusher", json!({})))?;
        wait_for("the push", Duration::from_secs(150), || {
            Ok(stages(&site.get("late")?).ends_with(&["Push".to_owned()]).then_some(()))
        })?;
        let cancel = r#"{"spec":{"cancel":true}}"#;
        site.cluster.kubectl(&["patch", "imgb", "late", "--type=merge", "-p", cancel])?;
        let (done, took) = site.until("late", "Succeeded", "False")?;
        eprintln!("cancelled after {took:.1?}");
        ensure!(done["status"]["phase"] == "Cancelled", "{:#}", done["status"]);
        site.clean()?;
        signal("CONT")?;

        // The driver is free again, and nothing of the first one came after all.
        site.apply(&pushed("next", "pusher", json!({})))?;
        let (done, _) = site.until("next", "Ready", "True")?;
        ensure!(registry.digest("team/next:1")? == done["status"]["digest"], "{:#}", done["status"]);
        ensure!(registry.digest("team/late:1").is_err(), "it was pushed all the same");
        site.clean()
    });
}

/// A volume that is a folder of this machine, and its claim.
fn claim(site: &Site, name: &str, folder: &std::path::Path) -> Result<()> {
    let size = json!({"storage": "1Gi"});
    site.apply(&json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": size, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": folder},
            "storageClassName": "", "claimRef": {"namespace": "default", "name": name}}}))?;
    site.apply(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name,
            "resources": {"requests": size}}}))
}

#[test]
fn a_result_is_archived_in_a_volume() {
    with_site(&[], |site| {
        let volume = site.cluster.root().join("volume");
        fs::create_dir_all(volume.join("taken"))?;
        claim(site, "disk", &volume)?;
        let archive = |path: &str, format: &str| {
            json!({"output": {"images": ["app:1"],
                "archive": {"claimName": "disk", "path": path, "format": format}}})
        };
        site.apply(&build("app", DOCKERFILE, archive("images/app.tar", "Oci")))?;
        let (done, took) = site.until("app", "Ready", "True")?;
        eprintln!("apply to archived: {took:.1?}; {:#}", attempt(&done)["stages"]);
        ensure!(stages(&done).ends_with(&["Archive".to_owned()]), "{:?}", stages(&done));
        let digest = done["status"]["digest"].as_str().context("no digest")?;
        site.apply(&build("docker", DOCKERFILE, archive("docker.tar", "Docker")))?;
        let (docker, _) = site.until("docker", "Ready", "True")?;
        let docker = docker["status"]["digest"].as_str().context("no digest")?.to_owned();
        // Both load elsewhere, with the digest that the status says.
        let lab = Lab::new()?;
        ensure!(done["status"]["sizes"]["unpackedBytes"].as_i64() > Some(1 << 20), "{:#}", done["status"]);
        for (name, file, digest) in [("oci", "images/app.tar", digest), ("docker", "docker.tar", &docker)] {
            lab.ok(&["image", "import", name, "-i", &volume.join(file).to_string_lossy()])?;
            let told = lab.ok(&["image", "inspect", name])?;
            ensure!(told.contains(digest), "{digest}: {told}");
        }

        // Into a full volume, never through a link, and nothing is left of what could not be written.
        let full = site.cluster.root().join("full");
        fs::create_dir(&full)?;
        let (cell, place) = (&site.nodes[0].lab.cell, full.to_string_lossy());
        cell.run("mount", &["-t", "tmpfs", "-o", "size=1m", "full", &place])?;
        claim(site, "full", &full)?;
        let mut large =
            build("large", DOCKERFILE, json!({"nodeSelector": {"kubernetes.io/hostname": "one"}}));
        large["spec"]["output"] = json!({"images": ["large:1"], "archive": {"claimName": "full"}});
        site.apply(&large)?;
        let (done, _) = site.until("large", "Stalled", "True")?;
        let failure = attempt(&done)["failure"].clone();
        let message = failure["message"].as_str().unwrap_or_default();
        ensure!(failure["reason"] == "ArchiveFailed" && message.contains("No space left"), "{failure}");
        ensure!(cell.run("ls", &["-A", &place])?.is_empty(), "something is left in the volume");
        site.cluster.kubectl(&["delete", "imgb", "large"])?;
        wait_for("the end of its pod", Duration::from_secs(60), || Ok(cell.run("umount", &[&place]).ok()))?;

        let outside = tempfile::tempdir()?;
        std::os::unix::fs::symlink(outside.path(), volume.join("out"))?;
        for (name, path) in [("astray", "out/app.tar"), ("blocked", "taken")] {
            site.apply(&build(name, DOCKERFILE, archive(path, "Oci")))?;
            let (done, _) = site.until(name, "Stalled", "True")?;
            let failure = attempt(&done)["failure"].clone();
            ensure!(failure["reason"] == "ArchiveFailed", "{failure}");
        }
        ensure!(fs::read_dir(outside.path())?.next().is_none(), "written through a link");
        let mut names: Vec<_> = fs::read_dir(&volume)?.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        ensure!(names == ["docker.tar", "images", "out", "taken"], "{names:?}");
        site.clean()
    });
}

#[test]
fn a_cache_in_a_registry_spares_steps_on_another_node() {
    with_site(&[], |site| {
        let registry = Registry::start(&site.cluster)?;
        let image = format!("{}/team/app:cache", Registry::ADDRESS);
        let dockerfile = "FROM lab.test/busybox:1 AS made\nRUN echo ran-$((6 * 7)) | tee /made\n\
            FROM lab.test/busybox:1\nCOPY --from=made /made /made\n";
        let cached = |name: &str, node: &str, cache: Value| {
            build(
                name,
                dockerfile,
                json!({"cache": cache, "nodeSelector": {"kubernetes.io/hostname": node}, "retries": 0,
                    "caBundle": {"name": "lab", "key": "ca.crt"}, "imagePullSecrets": [{"name": "pusher"}]}),
            )
        };
        let to = json!({"to": [{"image": image, "mode": "Max"}]});
        site.apply(&cached("first", "one", to))?;
        let (done, _) = site.until("first", "Ready", "True")?;
        ensure!(attempt(&done)["steps"]["cached"] == 0, "{:#}", attempt(&done));
        let log = site.cluster.kubectl(&["logs", "first-1"])?;
        ensure!(log.contains(&format!("pushed as {image}")) && log.contains("ran-42"), "{log}");
        let manifest = registry.manifest("team/app:cache")?;
        let kind = &manifest["config"]["mediaType"];
        ensure!(kind == "application/vnd.buildkit.cacheconfig.v0", "{manifest:#}");

        // A disk that was never used, and a cache that nobody has written.
        let from = json!({"disabled": true, "from": [image, format!("{}/team/none", Registry::ADDRESS)]});
        site.apply(&cached("second", "two", from))?;
        let (done, _) = site.until("second", "Ready", "True")?;
        // What was brought for the image BuildKit calls done, and the rest cached; nothing has run.
        ensure!(attempt(&done)["steps"]["cached"] != 0, "{:#}", attempt(&done));
        let log = site.cluster.kubectl(&["logs", "second-1"])?;
        ensure!(log.contains("no cache") && log.contains("team/none") && !log.contains("ran-42"), "{log}");
        site.clean()
    });
}
