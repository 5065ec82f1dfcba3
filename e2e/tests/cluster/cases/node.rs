//! What a node counts, allows, and refuses.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::site::{IDLE, Site, container, ended, is_ready, shell, with};

/// The limit of a pod's cgroup is what its containers may use and what its runtime class adds.
pub fn overhead(site: &Site<'_>) -> Result<String> {
    let limits = json!({"resources": {"limits": {"memory": "64Mi", "cpu": "100m"}}});
    site.ready_pod("counted", with(shell(IDLE), limits), json!({}))?;
    let pod = site.get(&["pod", "counted"])?;
    let class = site.cluster.get(&["runtimeclass", site.class])?;
    ensure!(pod["spec"]["overhead"] == class["overhead"]["podFixed"], "{}", pod["spec"]);
    let overhead = mebibytes(&class["overhead"]["podFixed"]["memory"])?;
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let cgroup =
        format!("/sys/fs/cgroup/memory{}/kubepods/pod{uid}/memory.limit_in_bytes", site.node.lab.cgroup());
    let limit: u64 = site.node.lab.cell.run("cat", &[&cgroup])?.trim().parse()?;
    ensure!(limit == (64 + overhead) << 20, "{limit}");
    let node = site.cluster.kubectl(&["describe", "node", site.node.name()])?;
    let line =
        node.lines().find(|line| line.contains(&site.namespace)).context("the node does not list the pod")?;
    ensure!(line.contains(&format!("{}Mi", 64 + overhead)), "{line}");
    Ok("limits and the class's overhead: in the pod, its cgroup and the node's sum".to_owned())
}

fn mebibytes(quantity: &Value) -> Result<u64> {
    let text = quantity.as_str().and_then(|text| text.strip_suffix("Mi")).context("no quantity in Mi")?;
    Ok(text.parse()?)
}

/// What `kubectl top` is made of.
pub fn stats(site: &Site<'_>) -> Result<String> {
    let limits = json!({"resources": {"limits": {"memory": "96Mi", "cpu": "200m"}}});
    site.pod("busy", &[with(shell("while :; do :; done"), limits)], json!({}))?;
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", site.node.name());
    let mut last = Value::Null;
    let found = site.until("figures of the pod", || {
        // containerd refuses while a container of another pod goes.
        let Ok(text) = site.cluster.kubectl(&["get", "--raw", &path]) else { return Ok(None) };
        let summary: Value = serde_json::from_str(&text)?;
        let mut pods = summary["pods"].as_array().into_iter().flatten();
        let Some(pod) = pods.find(|pod| pod["podRef"]["namespace"] == site.namespace.as_str()) else {
            return Ok(None);
        };
        last = pod.clone();
        let (own, some) =
            (&pod["containers"][0], |value: &Value| value.as_u64().is_some_and(|value| value > 0));
        let cores = own["cpu"]["usageNanoCores"].as_f64().unwrap_or_default() / 1e9;
        let bytes = own["memory"]["workingSetBytes"].as_u64().unwrap_or_default();
        // A busy machine gives less than the limit.
        let all = (0.02..0.3).contains(&cores)
            && (1..96 << 20).contains(&bytes)
            && some(&pod["memory"]["workingSetBytes"])
            && some(&pod["cpu"]["usageCoreNanoSeconds"]);
        Ok(all.then(|| "processor and memory of container and pod, within the limits".to_owned()))
    });
    found.with_context(|| format!("last seen: {last}"))
}

/// Evictions by the API keep to a disruption budget.
pub fn eviction(site: &Site<'_>) -> Result<String> {
    site.create(
        json!({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": "one"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}}),
    )?;
    let evict = |name: &str| {
        let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", site.namespace);
        let body = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": site.namespace}});
        site.cluster.kubectl_with(&["create", "--raw", &path, "-f", "-"], &body.to_string())
    };
    for name in ["first", "second"] {
        site.labelled(name, json!({"app": "kept"}), &[shell(IDLE)], json!({}))?;
    }
    for name in ["first", "second"] {
        site.ready(name)?;
    }
    site.until("the budget", || {
        Ok((site.get(&["pdb", "one"])?["status"]["disruptionsAllowed"] == 1).then_some(()))
    })?;
    ensure!(evict("first")?.status.success(), "the budget allows one");
    site.kubectl(&["wait", "--for=delete", "pod/first", "--timeout=120s"])?;
    let refusal = evict("second")?;
    let reason = String::from_utf8_lossy(&refusal.stderr).into_owned();
    ensure!(!refusal.status.success() && reason.contains("disruption budget"), "{reason}");
    Ok(format!("one evicted, one kept ready: {}", is_ready(&site.get(&["pod", "second"])?)))
}

/// What a pod with these fields says, or why it is not made.
fn said_or_refused(site: &Site<'_>, subject: Value, more: Value) -> Result<String> {
    site.pod("asks", &[subject], with(more, json!({"restartPolicy": "Never"})))?;
    let mut reason = None;
    site.until("an end or a refusal", || {
        let events = site.get(&["events", "--field-selector=reason=FailedCreatePodSandBox"])?;
        reason = events["items"][0]["message"].as_str().map(str::to_owned);
        Ok((reason.is_some() || ended(&site.get(&["pod", "asks"])?)).then_some(()))
    })?;
    if let Some(reason) = reason {
        let words = reason.rsplit("desc = ").next().unwrap_or_default();
        return Ok(format!("refused: {}", words.rsplit("task: ").next().unwrap_or_default()));
    }
    let pod = site.get(&["pod", "asks"])?;
    let code = &container(&pod)["state"]["terminated"]["exitCode"];
    Ok(format!("{code}: {}", site.log("asks")?.trim()))
}

pub fn host_network(site: &Site<'_>) -> Result<String> {
    let script = "ls /sys/class/net | grep -qx uplink && echo network of the node";
    said_or_refused(site, shell(script), json!({"hostNetwork": true}))
}

pub fn host_ipc(site: &Site<'_>) -> Result<String> {
    said_or_refused(site, shell("echo in the IPC namespace of the node"), json!({"hostIPC": true}))
}

pub fn host_processes(site: &Site<'_>) -> Result<String> {
    let script = "grep -qs containerd /proc/[0-9]*/comm && echo the processes of the node || echo no process of the node";
    said_or_refused(site, shell(script), json!({"hostPID": true}))
}

pub fn privileged(site: &Site<'_>) -> Result<String> {
    let privileged = json!({"securityContext": {"privileged": true}});
    let script = "mkdir /tmp/m && mount -t tmpfs none /tmp/m && grep -q ' /tmp/m tmpfs ' /proc/mounts && echo may mount";
    said_or_refused(site, with(shell(script), privileged), json!({}))
}
