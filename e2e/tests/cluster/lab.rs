//! The lab itself: what other tests rely on.

use std::path::Path;
use std::process::Command;

use cloister_e2e::Cluster;
use cloister_e2e::lab::cache;

/// kubectl as a process of the machine, not of the cluster's cell.
fn outside(kubeconfig: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(cache().unwrap().join("tools/kubectl/usr/bin/kubectl"));
    let home = kubeconfig.parent().unwrap();
    let output = command.arg("--kubeconfig").arg(kubeconfig).args(args).env("HOME", home).output().unwrap();
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn clients_of_the_test_reach_the_api_with_their_own_rights() {
    let cluster = Cluster::control_plane().unwrap();
    assert_eq!(outside(cluster.kubeconfig(), &["get", "--raw", "/readyz"]), (true, "ok".to_owned()));
    let reader = cluster.kubeconfig_of("reader", &["readers"]).unwrap();
    let get = ["get", "configmaps"];
    let (accepted, reason) = outside(&reader, &get);
    assert!(!accepted && reason.contains("User \"reader\" cannot list"), "{reason}");
    cluster.kubectl(&["create", "clusterrole", "read", "--verb=list,get", "--resource=configmaps"]).unwrap();
    cluster
        .kubectl(&["create", "clusterrolebinding", "read", "--clusterrole=read", "--group=readers"])
        .unwrap();
    let (accepted, reason) = outside(&reader, &get);
    assert!(accepted, "{reason}");
    let (accepted, _) = outside(&reader, &["get", "secrets"]);
    assert!(!accepted, "more than was given");
}

#[test]
fn a_killed_control_plane_comes_back_with_what_it_knew() {
    let cluster = Cluster::control_plane().unwrap();
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=key=value"]).unwrap();
    let before = cluster.daemon("kube-apiserver").unwrap().pid();
    for daemon in ["kube-apiserver", "etcd"] {
        cluster.stop(daemon, true).unwrap();
    }
    assert_eq!(cluster.memory().len(), 0, "nothing runs");
    for daemon in ["etcd", "kube-apiserver"] {
        cluster.start(daemon).unwrap();
    }
    assert_ne!(cluster.daemon("kube-apiserver").unwrap().pid(), before);
    assert_eq!(cluster.get(&["configmap", "kept"]).unwrap()["data"]["key"], "value");
    assert!(cluster.memory().values().all(|&bytes| bytes > 10 << 20), "{:?}", cluster.memory());
}
