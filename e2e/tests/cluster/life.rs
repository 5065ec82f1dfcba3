//! What kubelets do with pods while they live, with each containerd version. Part of `make e2e-cluster`.

use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Node;
use serde_json::Value;

use super::pods::{GONE, READY, log, pod, with_nodes};

/// How long a kubelet may take to say what became of a container.
const TOLD: Duration = Duration::from_secs(120);

/// One pod's life on a node.
type Case = fn(&Cluster, &Node) -> Result<()>;

#[test]
fn kubelets_lead_pods_through_their_lives() {
    const CASES: [(&str, Case); 5] = [
        ("memory", a_container_over_its_limit_is_said_to_be_out_of_memory),
        ("to_its_end", a_pod_ends_with_its_code_and_its_log_stays),
        ("again", a_container_that_fails_its_probe_starts_again),
        ("settings", settings_and_secrets_arrive_and_change),
        ("kubelet", pods_outlive_a_kubelet),
    ];
    with_nodes(|cluster, nodes| {
        for (name, case) in CASES {
            for node in nodes {
                eprintln!("{name} on {}", node.name());
                case(cluster, node)?;
            }
        }
        cluster.kubectl(&["delete", "pod", "--all"])?;
        nodes.iter().try_for_each(|node| node.check_traces(GONE))
    });
}

/// The status of a pod's only container, once `ready` says so.
fn container(cluster: &Cluster, name: &str, ready: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    wait_for(&format!("the container of {name}"), TOLD, || {
        last = cluster.get(&["pod", name])?["status"]["containerStatuses"][0].clone();
        Ok(ready(&last).then_some(()))
    })
    .map_err(|error| error.context(format!("last seen: {last}")))?;
    Ok(last)
}

fn a_pod_ends_with_its_code_and_its_log_stays(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = format!("ends-{}", node.name());
    cluster.apply(&pod(&name, node.name(), "Never", "echo last words; exit 3", ""))?;
    let ended = container(cluster, &name, |status| status["state"]["terminated"].is_object())?;
    assert_eq!(ended["state"]["terminated"]["exitCode"], 3, "{ended}");
    assert_eq!(log(cluster, &name)?, "last words\n");
    let phase = cluster.kubectl(&["get", "pod", &name, "-o", "jsonpath={.status.phase}"])?;
    ensure!(phase == "Failed", "{phase}");
    cluster.kubectl(&["delete", "pod", &name]).map(drop)
}

fn a_container_that_fails_its_probe_starts_again(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = format!("probed-{}", node.name());
    let probe = "    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, '!', -e, /tmp/sick]}, periodSeconds: 1, failureThreshold: 1}
";
    cluster.apply(&pod(&name, node.name(), "Always", "touch /tmp/ready; exec sleep 1000", probe))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", READY, &format!("pod/{name}")])?;
    cluster.kubectl(&["exec", &name, "--", "touch", "/tmp/sick"])?;
    container(cluster, &name, |status| status["restartCount"] == 1 && status["ready"] == true)?;
    cluster.kubectl(&["delete", "pod", &name]).map(drop)
}

fn a_container_over_its_limit_is_said_to_be_out_of_memory(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = format!("hungry-{}", node.name());
    let limit = "    resources: {limits: {memory: 64Mi}}\n";
    cluster.apply(&pod(&name, node.name(), "Never", "exec tail /dev/zero", limit))?;
    let ended = container(cluster, &name, |status| status["state"]["terminated"].is_object())?;
    assert_eq!(ended["state"]["terminated"]["reason"], "OOMKilled", "{ended}");
    cluster.kubectl(&["delete", "pod", &name]).map(drop)
}

fn settings_and_secrets_arrive_and_change(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = format!("settings-{}", node.name());
    cluster.kubectl(&["create", "configmap", &name, "--from-literal=colour=red"])?;
    cluster.kubectl(&["create", "secret", "generic", &name, "--from-literal=word=hidden"])?;
    let more = format!(
        "    env:
    - {{name: WORD, valueFrom: {{secretKeyRef: {{name: {name}, key: word}}}}}}
    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    volumeMounts:
    - {{name: settings, mountPath: /settings}}
  volumes:
  - {{name: settings, configMap: {{name: {name}}}}}
"
    );
    let script = "echo $WORD on $NODE, $(cat /settings/colour); exec sleep 1000";
    cluster.apply(&pod(&name, node.name(), "Always", script, &more))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", READY, &format!("pod/{name}")])?;
    assert_eq!(log(cluster, &name)?, format!("hidden on {}, red\n", node.name()));
    cluster.kubectl(&["patch", "configmap", &name, "-p", r#"{"data": {"colour": "blue"}}"#])?;
    // A kubelet looks at a pod's volumes about once a minute.
    wait_for("the new setting", TOLD, || {
        Ok((cluster.kubectl(&["exec", &name, "--", "cat", "/settings/colour"])? == "blue").then_some(()))
    })?;
    cluster.kubectl(&["delete", "pod", &name]).map(drop)
}

fn pods_outlive_a_kubelet(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = format!("outlives-{}", node.name());
    cluster.apply(&pod(&name, node.name(), "Always", "echo up; exec sleep 1000", ""))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", READY, &format!("pod/{name}")])?;
    let before = container(cluster, &name, |status| status["ready"] == true)?;
    node.stop_kubelet(true)?;
    node.start_kubelet()?;
    // It answers again, about the same container.
    wait_for("the kubelet", TOLD, || {
        Ok(cluster.try_kubectl(&["exec", &name, "--", "true"])?.status.success().then_some(()))
    })?;
    let after = container(cluster, &name, |status| status["ready"] == true)?;
    assert_eq!(after["containerID"], before["containerID"]);
    assert_eq!(after["restartCount"], 0);
    cluster.kubectl(&["delete", "pod", &name]).map(drop)
}
