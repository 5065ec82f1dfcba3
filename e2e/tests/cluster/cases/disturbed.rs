//! Cases that a whole node feels: nothing else runs on it meanwhile.

use std::fs;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::pod_images::{BUSYBOX, LINKS, PAUSE, archives};
use serde_json::{Value, json};

use super::site::{IDLE, Site, container, ended, is_ready, shell};

/// A pod that counts in its log stays the same through what happens to the node.
fn outlives(site: &Site<'_>, happens: impl FnOnce() -> Result<()>) -> Result<String> {
    let count = "n=0; while :; do n=$((n + 1)); echo $n; sleep 1; done";
    site.ready_pod("stays", shell(count), json!({}))?;
    let identity =
        |pod: &Value| (container(pod)["containerID"].clone(), container(pod)["restartCount"].clone());
    let before = identity(&site.get(&["pod", "stays"])?);
    happens()?;
    site.until("an answer of the pod", || Ok(site.sh("stays", "true").ok()))?;
    let lines = site.log("stays")?.lines().count();
    let log = site.until("more of its log", || {
        Ok(site.log("stays").ok().filter(|log| log.lines().count() > lines + 2))
    })?;
    for (index, line) in log.lines().enumerate() {
        ensure!(line == (index + 1).to_string(), "a line was lost: {line} after {index}");
    }
    let after = identity(&site.pod_when("stays", is_ready)?);
    ensure!(after == before, "{before:?} became {after:?}");
    site.delete("stays")?;
    Ok("the same container, no line of its log lost".to_owned())
}

pub fn kubelet_killed(site: &Site<'_>) -> Result<String> {
    outlives(site, || {
        site.node.stop_kubelet(true)?;
        site.node.start_kubelet()
    })
}

pub fn containerd_killed(site: &Site<'_>) -> Result<String> {
    outlives(site, || {
        site.node.lab.stop_daemon(true)?;
        site.node.lab.start_daemon()
    })
}

pub fn drain(site: &Site<'_>) -> Result<String> {
    site.ready_pod("moves", shell(IDLE), json!({}))?;
    let name = site.node.name();
    let drain = ["drain", name, "--force", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s"];
    site.cluster.kubectl(&drain)?;
    site.pod("waits", &[shell(IDLE)], json!({}))?;
    let reason = |pod: &Value| pod["status"]["conditions"][0]["reason"].clone();
    let waits = site.pod_when("waits", |pod| !reason(pod).is_null())?;
    site.cluster.kubectl(&["uncordon", name])?;
    site.ready("waits")?;
    Ok(format!("gone; the next one {} and ready afterwards", reason(&waits)))
}

/// With too little room on its disk, a node removes images that no container has, and then a pod.
pub fn disk_pressure(site: &Site<'_>) -> Result<String> {
    let lab = &site.node.lab;
    let import = |images: &[&str]| -> Result<()> {
        let import =
            |path: std::path::PathBuf| lab.ctr(&["images", "import", &path.to_string_lossy()]).map(drop);
        archives(images)?.into_iter().try_for_each(import)
    };
    import(&[LINKS])?;
    site.ready_pod("large", shell(IDLE), json!({}))?;
    let file = lab.root().join("kubelet.yaml");
    let usual = fs::read_to_string(&file)?;
    let scarce = usual.replace(
        "nodefs.available: 1Gi, imagefs.available: 1Gi",
        "nodefs.available: 99%, imagefs.available: 99%",
    );
    ensure!(scarce != usual, "the kubelet's configuration is not what it was");
    let with = |text: &str| {
        site.node.stop_kubelet(true)?;
        fs::write(&file, text)?;
        site.node.start_kubelet()
    };
    with(&scarce)?;
    let seen = pressed(site);
    with(&usual)?;
    import(&[BUSYBOX, PAUSE])?;
    wait_for("a node without pressure", std::time::Duration::from_secs(60), || {
        let node = site.cluster.get(&["node", site.node.name()])?;
        let all = node["status"]["conditions"].as_array().context("no conditions")?;
        let fine = |kind: &str, status: &str| all.iter().any(|c| c["type"] == kind && c["status"] == status);
        Ok((fine("DiskPressure", "False") && fine("Ready", "True") && node["spec"]["taints"].is_null())
            .then_some(()))
    })?;
    seen
}

fn pressed(site: &Site<'_>) -> Result<String> {
    site.until("the end of an image that nothing uses", || {
        Ok(site.node.lab.image(LINKS)?.is_none().then_some(()))
    })?;
    let pod = site.pod_when("large", ended)?;
    Ok(format!("unused image gone, pod {}", pod["status"]["reason"]))
}
