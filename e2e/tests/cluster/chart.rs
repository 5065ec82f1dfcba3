//! The charts and a real API server: every object that they render, and the ways of a release, by Helm's own engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::lab::{checkout, target_dir};
use serde_json::Value;

/// Kinds that the Prometheus operator defines, which is not there.
const WITHOUT_MONITORING: &str = "--set=metrics.podMonitor.enabled=false,metrics.rules.enabled=false";
pub const NAMESPACE: &str = "cloister-system";

pub fn charts() -> PathBuf {
    checkout().join("charts")
}

/// Helm's words, for this cluster.
pub fn helm(cluster: &Cluster, args: &[&str]) -> String {
    let mut command = Command::new(checkout().join("scripts/charts/helm.py"));
    command.args(args).args(["--namespace", NAMESPACE]).arg("--kubeconfig").arg(cluster.kubeconfig());
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A cluster with the namespace of a release.
fn cluster() -> Cluster {
    let cluster = Cluster::control_plane().unwrap();
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    cluster
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What there is of a release, as `kind/name`.
fn objects(cluster: &Cluster) -> Vec<String> {
    let kinds = "deployments,daemonsets,serviceaccounts,secrets,configmaps,poddisruptionbudgets,networkpolicies,roles,\
                 rolebindings,clusterroles,clusterrolebindings,runtimeclasses,priorityclasses";
    let labelled = "app.kubernetes.io/instance=cloister";
    let list = cluster.kubectl(&["get", kinds, "-A", "-l", labelled, "-o", "name"]).unwrap();
    list.lines().map(str::to_owned).collect()
}

/// What pods of the DaemonSet are made from; a merge may leave mounts in another order.
fn pods_of_nodes(cluster: &Cluster) -> Value {
    let set = cluster.get(&["daemonset/cloister-node", "-n", NAMESPACE]).unwrap();
    let mut pods = set["spec"]["template"]["spec"].clone();
    for container in pods["containers"].as_array_mut().unwrap() {
        let mounts = container["volumeMounts"].as_array_mut().unwrap();
        mounts.sort_by_key(|mount| mount["mountPath"].to_string());
    }
    pods
}

#[test]
fn what_the_chart_renders_is_accepted() {
    let cluster = cluster();
    cluster.install_definition().unwrap();
    // Pods are taken once there is a service account with a token.
    cluster.start("kube-controller-manager").unwrap();
    wait_for("the default service account", Duration::from_secs(30), || {
        let secrets = ["get", "serviceaccount", "default", "-n", NAMESPACE, "-o", "jsonpath={.secrets}"];
        let found = cluster.try_kubectl(&secrets)?;
        Ok((found.status.success() && !found.stdout.is_empty()).then_some(()))
    })
    .unwrap();
    let chart = charts().join("cloister");
    let rendered: Vec<(PathBuf, String)> = fs::read_dir(chart.join("ci"))
        .unwrap()
        .map(|file| {
            let file = file.unwrap().path();
            let values = format!("--values={}", file.display());
            let manifest =
                helm(&cluster, &["template", "cloister", text(&chart), &values, WITHOUT_MONITORING]);
            (file, manifest)
        })
        .collect();
    let class = r#"{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "cloister"}, "handler": "cloister"}"#;
    assert!(cluster.kubectl_with(&["create", "-f", "-"], class).unwrap().status.success());
    let mut count = 0;
    for (file, manifest) in rendered {
        let args = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
        let output = cluster.kubectl_with(&args, &manifest).unwrap();
        let (taken, reason) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {reason}", file.display());
        assert_eq!(taken.lines().count(), manifest.matches("\nkind: ").count(), "{taken}");
        count += taken.lines().count();
    }
    assert!(count > 80, "{count} objects");
}

#[test]
fn a_release_comes_changes_goes_back_and_goes() {
    let cluster = cluster();
    let (crds, chart) = (charts().join("cloister-crds"), charts().join("cloister"));
    let nothing = objects(&cluster);
    helm(&cluster, &["install", "cloister-crds", text(&crds)]);
    helm(&cluster, &["install", "cloister", text(&chart)]);
    let installed = objects(&cluster);
    for object in [
        "deployment.apps/cloister-operator",
        "daemonset.apps/cloister-node",
        "runtimeclass.node.k8s.io/cloister",
    ] {
        assert!(installed.iter().any(|name| name == object), "no {object} in {installed:?}");
    }
    let get = |what: &str| -> Value { cluster.get(&[what, "-n", NAMESPACE]).unwrap() };
    let certificates = get("secret/cloister-node-tls")["data"].clone();
    let pods = pods_of_nodes(&cluster);

    helm(&cluster, &["upgrade", "cloister", text(&chart), "--set=operator.replicas=3"]);
    assert_eq!(get("deployment/cloister-operator")["spec"]["replicas"], 3);
    assert_eq!(get("secret/cloister-node-tls")["data"], certificates, "nodes go on trusting each other");
    assert_eq!(pods_of_nodes(&cluster), pods, "nodes have nothing to do with it");

    let values = format!("--values={}", chart.join("ci/runtime-only.yaml").display());
    helm(&cluster, &["upgrade", "cloister", text(&chart), &values, WITHOUT_MONITORING]);
    assert!(!objects(&cluster).iter().any(|name| name.contains("operator")), "no builds, no operator");
    assert_ne!(pods_of_nodes(&cluster), pods);
    helm(&cluster, &["rollback", "cloister", "1"]);
    assert_eq!(objects(&cluster), installed);
    assert_eq!(get("deployment/cloister-operator")["spec"]["replicas"], 2);
    assert_eq!(pods_of_nodes(&cluster), pods);

    helm(&cluster, &["uninstall", "cloister"]);
    assert_eq!(objects(&cluster), nothing);
    helm(&cluster, &["uninstall", "cloister-crds"]);
    cluster
        .get(&["crd/imagebuilds.cloister.dev"])
        .expect("the definition, and with it every ImageBuild, stays");
}

#[test]
fn the_programs_take_what_the_chart_tells_them() {
    let chart = charts().join("cloister");
    let mut told = 0;
    for file in fs::read_dir(chart.join("ci")).unwrap() {
        let values = format!("--values={}", file.unwrap().path().display());
        let mut helm = Command::new(checkout().join("scripts/charts/helm.py"));
        let output = helm.args(["template", "cloister", text(&chart), &values]).output().unwrap();
        let manifest = String::from_utf8(output.stdout).unwrap();
        for document in manifest.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let program = match object["kind"].as_str() {
                Some("Deployment") => "cloister-operator",
                Some("DaemonSet") => "cloister-node",
                _ => continue,
            };
            let pod = &object["spec"]["template"]["spec"];
            for container in
                ["initContainers", "containers"].iter().flat_map(|list| pod[list].as_array()).flatten()
            {
                let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
                // A flag before it that is not known, or does not take its value, is an error.
                let output =
                    Command::new(target_dir().join(program)).args(args).arg("--help").output().unwrap();
                assert!(
                    output.status.success(),
                    "{}: {}",
                    container["name"],
                    String::from_utf8_lossy(&output.stderr)
                );
                told += 1;
            }
        }
    }
    assert!(told > 15, "{told} containers");
}
