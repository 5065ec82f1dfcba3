//! A folder's way into a pod and a log's way back, through an API server, a kubelet, containerd and a microVM. The test
//! plays operator and build driver: the pod takes what arrives and says its digest.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Node;
use cloister_e2e::containerd::Version;
use cloister_e2e::lab::target_dir;
use cloister_e2e::pod_images::BUSYBOX;
use serde_json::{Value, json};

/// How long a pod may take to its end.
const END: Duration = Duration::from_secs(150);

#[test]
fn a_folder_goes_into_a_pod_and_its_log_comes_back() {
    let cluster = Cluster::control_plane().unwrap();
    cluster.start_controllers().unwrap();
    cluster.install_definition().unwrap();
    let node = cluster.node("one", Version::V2_1, &[BUSYBOX]).unwrap();
    if let Err(error) = uploaded(&cluster, &node) {
        node.print_logs();
        cluster.print_logs();
        panic!("{error:#}");
    }
}

fn uploaded(cluster: &Cluster, node: &Node) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("Dockerfile"), "FROM scratch\n")?;
    // More than all the buffers on the way hold together.
    let noise: Vec<u8> = (0..8_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.path().join("noise"), noise)?;
    let mut command = Command::new(target_dir().join("cloister"));
    command.arg0("kubectl-cloister").arg("--kubeconfig").arg(cluster.kubeconfig());
    command.args(["build", "-t", "app:1", "--name", "app"]).arg(folder.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let build = wait_for("the build", END, || {
        Ok(cluster
            .try_kubectl(&["get", "imgb", "app"])?
            .status
            .success()
            .then(|| cluster.get(&["imgb", "app"])))
    })??;
    cluster.apply(&pod(&build).to_string())?;
    let attempt =
        json!({"number": 1, "generation": 1, "trigger": "Spec", "pod": "app-1", "node": node.name()});
    let mut status = json!({"observedGeneration": 1, "attempts": [attempt],
        "conditions": [condition("Reconciling", "Building")]});
    cluster.patch_status("imagebuilds", "app", &json!({"status": status}).to_string())?;
    wait_for("the pod's end", END, || {
        let phase = cluster.get(&["pod", "app-1"])?["status"]["phase"].clone();
        ensure!(phase != "Failed", "{}", cluster.kubectl(&["logs", "app-1"])?);
        Ok((phase == "Succeeded").then_some(()))
    })?;
    let digest = format!("sha256:{}", "ab".repeat(32));
    status["attempts"][0]["completionTime"] = "2026-01-01T00:00:00Z".into();
    status["attempts"][0]["digest"] = digest.clone().into();
    status["conditions"] = json!([condition("Ready", "ImageReady")]);
    status["digest"] = digest.clone().into();
    status["image"] = "docker.io/library/app:1".into();
    cluster.patch_status("imagebuilds", "app", &json!({"status": status}).to_string())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    ensure!(output.status.success(), "{said}");
    ensure!(String::from_utf8_lossy(&output.stdout) == format!("docker.io/library/app:1@{digest}\n"));
    let sent = build["spec"]["source"]["upload"]["digest"].as_str().unwrap_or_default();
    let hex = sent.trim_start_matches("sha256:");
    ensure!(said.contains("\nbegins\n") && said.contains(&format!("\n{hex}  -\nends\n")), "{sent}: {said}");
    Ok(())
}

/// A pod as the operator makes it, but that it shows what it gets.
fn pod(build: &Value) -> Value {
    let script = "echo begins; sha256sum; echo ends";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app-1", "ownerReferences": [{
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "name": "app", "uid": build["metadata"]["uid"]}]},
        "spec": {"runtimeClassName": "cloister", "restartPolicy": "Never", "containers": [{"name": "builder",
            "image": BUSYBOX, "imagePullPolicy": "Never", "stdin": true, "stdinOnce": true,
            "command": ["sh", "-c", script]}]}})
}

fn condition(kind: &str, reason: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": "by a test", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}
