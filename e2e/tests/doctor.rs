//! `cloister doctor --cri` beside real containerds: a node that can run pods in microVMs, and what it says of one that can't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use cloister_e2e::containerd::{Containerd, Version};
use cloister_e2e::lab::target_dir;
use cloister_e2e::node;

/// The lines that are about containerd and pods.
const CRI: [&str; 10] = [
    "containerd",
    "handler",
    "snapshotter",
    "differ",
    "shim",
    "cloister-node",
    "tc",
    "nftables",
    "cgroups",
    "leftovers",
];

/// A check's verdict and advice, by its name.
type Report = BTreeMap<String, (String, String)>;

/// Runs the command in the lab's cell; its exit code must agree with what it prints.
fn examine(lab: &Containerd) -> Report {
    let mut command = Command::new(target_dir().join("cloister"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(target_dir()).chain(std::env::split_paths(&path));
    command
        .env("PATH", std::env::join_paths(folders).unwrap())
        .args(["--output", "json", "doctor", "--cri", "--containerd"])
        .arg(lab.root().join("containerd.sock"))
        .arg("--node")
        .arg(node::socket(lab.root()));
    let output = lab.cell.inside(|| command.output()).unwrap().unwrap();
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let word = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let report: Report = checks
        .iter()
        .map(|check| (word(check, "name"), (word(check, "verdict"), word(check, "fix"))))
        .collect();
    let missing = report.values().any(|(verdict, _)| verdict == "missing");
    assert_eq!(output.status.code(), Some(i32::from(missing)), "{report:?}");
    // Machine first.
    assert_eq!(word(&checks[0], "name"), "qemu");
    report
}

fn is(report: &Report, name: &str, verdict: &str, advice: &str) {
    let (found, fix) = report.get(name).unwrap_or_else(|| panic!("no {name} in {report:?}"));
    assert!(found == verdict && fix.contains(advice), "{name}: {report:?}");
}

fn nodes_of_this_version(version: Version, table: &str) {
    let lab = Containerd::start(version, true, &[]).unwrap();
    let healthy = examine(&lab);
    for name in CRI {
        is(&healthy, name, "ok", "");
    }

    lab.stop_node(false).unwrap();
    let pod = lab.cell.path("/run/cloister/pods/k8s.io/abcdef");
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("state.json"), r#"{"shim": {"pid": 1, "started": 0}}"#).unwrap();
    let alone = examine(&lab);
    is(&alone, "cloister-node", "missing", "systemctl enable --now cloister-node.socket");
    is(&alone, "leftovers", "warning", "containerd-shim-cloister-v2 -namespace");
    is(&alone, "snapshotter", "ok", "");
    // The advice is followed.
    let shim = target_dir().join("containerd-shim-cloister-v2");
    let delete = ["-namespace", "k8s.io", "-id", "abcdef", "delete"];
    lab.cell.run(&shim.to_string_lossy(), &delete).unwrap();
    is(&examine(&lab), "leftovers", "ok", "");

    lab.stop_daemon(false).unwrap();
    let file = lab.root().join("containerd.toml");
    let config = fs::read_to_string(&file).unwrap();
    let without = config.replace("runtimes.cloister]", "runtimes.other]");
    assert_ne!(config, without);
    fs::write(&file, without).unwrap();
    lab.start_daemon().unwrap();
    let plain = examine(&lab);
    is(&plain, "containerd", "ok", "");
    is(&plain, "handler", "missing", &format!("[plugins.\"{table}\".containerd.runtimes.cloister]"));

    lab.stop_daemon(false).unwrap();
    is(&examine(&lab), "containerd", "missing", "systemctl start containerd");
}

#[test]
fn containerd_1_7_is_examined() {
    nodes_of_this_version(Version::V1_7, "io.containerd.grpc.v1.cri");
}

#[test]
fn containerd_2_1_is_examined() {
    nodes_of_this_version(Version::V2_1, "io.containerd.cri.v1.runtime");
}
