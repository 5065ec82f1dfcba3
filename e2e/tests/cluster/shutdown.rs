//! A node that is shut down: its kubelet has logind wait until the pods have ended.

use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::OrdinaryNode;
use cloister_e2e::containerd::Version;
use cloister_e2e::pod_images::BUSYBOX;
use cloister_e2e::systemd::Systemd;

use super::chart::{charts, helm, text};
use super::release::{MICROVM, ready, with_node};

/// How long the kubelet may take to say what it did.
const TOLD: Duration = Duration::from_secs(30);
/// Where the pods leave their last words, on the node.
const FOLDER: &str = "/var/lib/ends";

/// A pod that takes a second to end.
fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  {more}
  restartPolicy: Never
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, 'trap \"sleep 1; echo ended >/ends/{name}; exit 0\" TERM; while :; do sleep 1; done']
    volumeMounts: [{{name: ends, mountPath: /ends}}]
  volumes: [{{name: ends, hostPath: {{path: {FOLDER}, type: DirectoryOrCreate}}}}]
---
"
    )
}

fn pods_end_before_their_node(cluster: &Cluster, node: &OrdinaryNode, systemd: &Systemd<'_>) -> Result<()> {
    helm(cluster, &["install", "cloister-crds", text(&charts().join("cloister-crds"))]);
    helm(cluster, &["install", "cloister", text(&charts().join("cloister"))]);
    cluster.apply(&(pod("ordinary", "enableServiceLinks: false") + &pod("microvm", MICROVM)))?;
    ready(cluster, &["pod/ordinary", "pod/microvm"])?;

    node.shut_down(systemd)?;
    for name in ["ordinary", "microvm"] {
        let words = systemd.run("cat", &[&format!("{FOLDER}/{name}")])?;
        ensure!(words == "ended\n", "{name}: {words:?}");
    }
    let status = |name: &str| -> Result<Option<String>> {
        let status = cluster.get(&["pod", name])?["status"].take();
        let told = status["phase"] == "Failed";
        Ok(told.then(|| format!("{} {}: {}", status["phase"], status["reason"], status["message"])))
    };
    let ordinary = wait_for("the ordinary pod's status", TOLD, || status("ordinary"))?;
    let microvm = wait_for("the microVM's status", TOLD, || status("microvm"))?;
    eprintln!("{ordinary}");
    ensure!(ordinary == microvm, "{microvm}");
    wait_for("the node's status", TOLD, || {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].message}";
        Ok(cluster.kubectl(&["get", "node", "one", "-o", path])?.contains("shutting down").then_some(()))
    })
}

#[test]
fn pods_end_before_their_node_on_2_1() {
    with_node(Version::V2_1, pods_end_before_their_node).unwrap();
}

#[test]
fn pods_end_before_their_node_on_1_7() {
    with_node(Version::V1_7, pods_end_before_their_node).unwrap();
}
