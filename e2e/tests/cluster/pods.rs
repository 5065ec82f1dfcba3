//! Pods with `runtimeClassName: cloister` as a user has them: through kubectl, the scheduler and kubelets.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Node;
use cloister_e2e::pod_images::BUSYBOX;

/// How long a microVM and a kubelet may take until a pod is ready, for kubectl.
const READY: &str = "--timeout=180s";
/// How long a container's output may take to be in its log.
const FIRST_LINE: Duration = Duration::from_secs(20);
/// How soon nothing may be left of pods whose objects are gone; a kubelet looks for their folders now and then.
pub const GONE: Duration = Duration::from_secs(30);

/// Runs a test with a node of each containerd version, `one` and `two`; on failure the logs are printed.
pub fn with_nodes(test: impl FnOnce(&Cluster, &[Node]) -> Result<()>) {
    let cluster = Cluster::control_plane().unwrap();
    let outcome = cluster.two_nodes().and_then(|nodes| {
        let outcome = test(&cluster, &nodes);
        if outcome.is_err() {
            nodes.iter().for_each(Node::print_logs);
        }
        outcome
    });
    if let Err(error) = outcome {
        cluster.print_logs();
        panic!("{error:#}");
    }
}

/// A pod of one busybox container on the node whose name it has.
fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  runtimeClassName: cloister
  nodeSelector: {{kubernetes.io/hostname: {name}}}
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, {script:?}]
"
    )
}

/// What a pod has written, once it ends in a whole line.
fn log(cluster: &Cluster, name: &str) -> Result<String> {
    wait_for(&format!("the log of {name}"), FIRST_LINE, || {
        let log = cluster.kubectl(&["logs", name])?;
        Ok(log.ends_with('\n').then_some(log))
    })
}

#[test]
fn pods_run_in_microvms_on_each_node() {
    with_nodes(|cluster, nodes| {
        let script = "echo \"up on $(uname -r)\"; while :; do hostname | nc -l -p 80; done";
        for node in nodes {
            let name = node.name();
            cluster.apply(&pod(name, script))?;
        }
        let machine = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        for node in nodes {
            let name = node.name();
            cluster.kubectl(&["wait", "--for=condition=Ready", READY, &format!("pod/{name}")])?;
            let log = log(cluster, name)?;
            assert!(log.starts_with("up on ") && !log.contains(machine.trim()), "{log} on {machine}");
            let said = cluster.kubectl(&["exec", name, "--", "sh", "-c", "echo $((6 * 7)); hostname"])?;
            assert_eq!(said, format!("42\n{name}\n"));
        }
        for (from, to) in [("one", "two"), ("two", "one")] {
            let address = cluster.kubectl(&["get", "pod", to, "-o", "jsonpath={.status.podIP}"])?;
            assert_eq!(
                cluster.kubectl(&["exec", from, "--", "nc", "-w", "5", &address, "80"])?,
                format!("{to}\n")
            );
        }
        eprintln!("resident memory: {:?}", cluster.memory());
        for node in nodes {
            eprintln!("kubelet of {}: {:?}", node.name(), node.kubelet_memory());
        }
        cluster.kubectl(&["delete", "pod", "--all"])?;
        nodes.iter().try_for_each(|node| node.check_traces(GONE))
    });
}
