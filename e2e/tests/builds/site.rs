//! A cluster of two nodes that builds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::{Builds, Node};
use serde_json::{Value, json};

/// How long a build may take from its object to its end, kubelets and emulated guests included.
pub const END: Duration = Duration::from_secs(150);
/// How soon nothing may be left of pods whose objects are gone.
pub const GONE: Duration = Duration::from_secs(30);

/// A cluster, its nodes, and what builds in it.
pub struct Site {
    // In the order in which they have to end.
    pub builds: Builds,
    pub nodes: Vec<Node>,
    pub cluster: Cluster,
}

/// Runs a test with a node of each containerd version, `one` and `two`; on failure the logs are printed.
pub fn with_site(operator: &[&str], test: impl FnOnce(&Site) -> Result<()>) {
    let cluster = Cluster::control_plane().unwrap();
    let nodes = cluster.two_nodes().unwrap();
    let builds = Builds::start(&cluster, &nodes, operator).unwrap();
    let site = Site { builds, nodes, cluster };
    if let Err(error) = test(&site) {
        site.nodes.iter().for_each(Node::print_logs);
        site.builds.print_logs();
        panic!("{error:#}");
    }
}

/// A build of this Dockerfile; `spec` is merged over the least there is.
pub fn build(name: &str, dockerfile: &str, spec: Value) -> Value {
    let mut build = json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": name},
        "spec": {"source": {"inline": {"dockerfile": dockerfile}}, "output": {"images": [format!("{name}:1")]}}});
    for (key, value) in spec.as_object().unwrap() {
        build["spec"][key] = value.clone();
    }
    build
}

/// A pod that runs an image of a node once and never pulls, in a microVM or not.
pub fn pod(name: &str, image: &str, node: &str, microvm: bool) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "restartPolicy": "Never",
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "Never"}]}});
    if microvm {
        pod["spec"]["runtimeClassName"] = json!("cloister");
    }
    pod
}

impl Site {
    /// Applies an object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// The build's object.
    pub fn get(&self, name: &str) -> Result<Value> {
        self.cluster.get(&["imgb", name])
    }

    /// Waits until a condition of the build has this status, and gives the object and the time it took.
    pub fn until(&self, name: &str, condition: &str, status: &str) -> Result<(Value, Duration)> {
        let begun = Instant::now();
        let build = wait_for(&format!("{condition}={status} of {name}"), END, || {
            self.builds.check()?;
            let build = self.get(name)?;
            Ok((self::condition(&build, condition)["status"] == status).then_some(build))
        })
        .with_context(|| format!("{:#}", self.get(name).unwrap_or_default()["status"]))?;
        Ok((build, begun.elapsed()))
    }

    /// Runs the image once on a node and gives what it wrote.
    pub fn run(&self, image: &str, node: &str, microvm: bool) -> Result<String> {
        let name = format!("run-{node}");
        self.apply(&pod(&name, image, node, microvm))?;
        wait_for(&format!("the end of {name}"), END, || {
            let pod = self.cluster.get(&["pod", &name])?;
            let phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
            ensure!(phase != "Failed", "{:#}", pod["status"]);
            Ok((phase == "Succeeded").then_some(()))
        })
        .with_context(|| self.cluster.kubectl(&["describe", "pod", &name]).unwrap_or_default())?;
        let log = self.cluster.kubectl(&["logs", &name])?;
        self.cluster.kubectl(&["delete", "pod", &name])?;
        Ok(log)
    }

    /// Deletes every build; fails when anything is left of them on a node.
    pub fn clean(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "imgb", "--all", "--timeout=60s"])?;
        wait_for("the end of all pods", GONE, || {
            let pods = self.cluster.get(&["pods"])?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        self.nodes.iter().try_for_each(|node| node.check_traces(GONE))
    }
}

/// A condition of an object, or null.
pub fn condition(build: &Value, kind: &str) -> Value {
    let all = build["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

/// The newest attempt in a build's status.
pub fn attempt(build: &Value) -> Value {
    build["status"]["attempts"].as_array().and_then(|all| all.last().cloned()).unwrap_or_default()
}
