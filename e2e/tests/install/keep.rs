//! The installer as a pod of a DaemonSet runs it: it stays, and tells the cluster what it knows.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Cluster;
use cloister_e2e::containerd::{Handler, Version};
use cloister_e2e::lab::target_dir;
use cloister_e2e::systemd::Systemd;

use crate::node::{GUEST, cloister_node, flags, lab, main_pid, payload};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// A node without a kubelet, and a lease that another node holds.
const OBJECTS: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}},
    {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
     "metadata": {"name": "cloister-node-install", "namespace": "default"},
     "spec": {"holderIdentity": "other", "leaseDurationSeconds": 600}}]}"#;

/// The status line of a page.
fn page(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn label(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "node", "one", "-o", r"jsonpath={.metadata.labels.cloister\.dev/ready}"])
}

fn holder(cluster: &Cluster) -> Result<String> {
    let lease = ["get", "lease", "cloister-node-install", "-o", "jsonpath={.spec.holderIdentity}"];
    cluster.kubectl(&lease)
}

pub fn stays(version: Version) -> Result<()> {
    let cluster = Cluster::control_plane()?;
    cluster.grant_rights()?;
    cluster.apply(OBJECTS)?;
    let kubeconfig = cluster.kubeconfig_for_nodes("installer", &["cloister-installers"])?;
    let rig = Rig::of(lab(version)?, Handler::Runc);
    cluster.join(&rig.lab.cell)?;
    let root = rig.lab.root();
    let (to, health, log) = (root.join("opt-cloister"), root.join("health.sock"), root.join("installer.log"));
    // A guest that never boots, and a real one.
    let (broken, good) = (payload(&root.join("broken"), "1")?, payload(&root.join("good"), "2")?);
    fs::write(broken.join(GUEST).join("vmlinux"), "no kernel")?;
    let from = root.join("from");
    symlink(&broken, &from)?;
    let installer = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=exec\nTimeoutStopSec=20\nStandardError=append:{}\nExecStart={} install {} \
         --keep --from={} --node-name=one --kubeconfig={} --health-address=unix:{}\n",
        log.display(),
        target_dir().join("cloister-node").display(),
        flags(&rig.lab, &to).join(" "),
        from.display(),
        kubeconfig.display(),
        health.display(),
    );
    rig.lab.start_node()?;
    let units = [("containerd.service", rig.lab.unit()?), ("installer.service", installer)];
    let units = units.each_ref().map(|(name, text)| (*name, text.as_str()));
    let group = rig.lab.cgroup().trim_start_matches('/').to_owned();
    let systemd = Systemd::start(&rig.lab.cell, &root.join("units"), &group, &units)?;
    systemd.systemctl(&["start", "containerd.service"])?;
    let (logged, old) = (|| fs::read_to_string(&log).unwrap_or_default(), main_pid(&systemd)?);
    let said = |words: &str| {
        wait_for(words, PATIENCE, || Ok(logged().contains(words).then_some(()))).with_context(logged)
    };

    // Nodes restart their containerd one after the other.
    systemd.systemctl(&["start", "installer.service"])?;
    said("waiting for this node's turn")?;
    assert_eq!((main_pid(&systemd)?, holder(&cluster)?.as_str()), (old.clone(), "other"));
    let free = r#"{"spec": {"holderIdentity": ""}}"#;
    cluster.kubectl(&["patch", "lease", "cloister-node-install", "--type=merge", "-p", free])?;
    said("no microVM boots on this node")?;
    assert_ne!(main_pid(&systemd)?, old);
    assert_eq!((holder(&cluster)?.as_str(), label(&cluster)?.as_str()), ("", ""));
    assert_eq!(page(&health, "/healthz")?, "HTTP/1.1 200 OK");
    assert!(page(&health, "/readyz")?.starts_with("HTTP/1.1 503 "));
    let end = || -> Result<()> {
        systemd.systemctl(&["stop", "installer.service"])?;
        let result = systemd.systemctl(&["show", "-p", "Result", "--value", "installer.service"])?;
        ensure!(result.trim() == "success", "{result}: {}", logged());
        Ok(())
    };
    end()?;

    // A version that boots: no restart, and the node is ready.
    let restarted = main_pid(&systemd)?;
    fs::remove_file(&from)?;
    symlink(&good, &from)?;
    systemd.systemctl(&["start", "installer.service"])?;
    said("a microVM booted")?;
    wait_for("the label", PATIENCE, || Ok((label(&cluster)? == "true").then_some(())))
        .with_context(logged)?;
    assert_eq!(page(&health, "/readyz")?, "HTTP/1.1 200 OK");
    assert_eq!(main_pid(&systemd)?, restarted);
    wait_for("the end of the self-test", PATIENCE, || {
        Ok(rig.lab.cell.find("containerd-shim-cloister-v2")?.is_empty().then_some(()))
    })?;
    assert_eq!(rig.lab.ctr(&["containers", "ls", "-q"])?, "", "nothing is left of it");

    // It ends, and what it installed stays until it is taken off.
    end()?;
    assert_eq!(label(&cluster)?, "true");
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    cloister_node(&rig.lab, &systemd, "uninstall", &to, &["--node-name=one", &kubeconfig])?;
    assert_eq!(label(&cluster)?, "");
    assert!(!to.exists() && !root.join("shim.toml").exists());
    Ok(())
}
