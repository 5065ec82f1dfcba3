//! A node: a private containerd with `cloister-node`, as any lab's, and a kubelet in the same cell.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Cluster, Daemon, kubelet, network};
use crate::cell::{Cell, wait_for};
use crate::containerd::config::Subnets;
use crate::containerd::{Containerd, Version};
use crate::pod_images::{BUSYBOX, PAUSE};
use crate::traces::Traces;

/// How long a kubelet may take until its node is ready.
pub(super) const READY: Duration = Duration::from_secs(120);

/// A node of a cluster; dropping it ends and removes everything of it but the object in the API.
pub struct Node {
    name: String,
    address: String,
    kubelet: Daemon,
    /// The containerd and the cell that all of the node lives in.
    pub lab: Containerd,
}

impl Cluster {
    /// Connects a cell to the API server, for whatever a node without a kubelet runs.
    pub fn join(&self, cell: &Cell) -> Result<()> {
        network::connect(self.cell(), cell, self.nodes.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Starts the controllers and a node of each containerd version, `one` and `two`, with busybox.
    pub fn two_nodes(&self) -> Result<Vec<Node>> {
        self.start_controllers()?;
        let node = |name, version| self.node(name, version, &[BUSYBOX]);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| node("two", Version::V1_7));
            let first = node("one", Version::V2_1);
            let second =
                second.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the start of a node panicked")));
            Ok(vec![first?, second?])
        })
    }

    /// Adds a node with this containerd, on which these images are, and waits until it is ready. The controllers have
    /// to run.
    pub fn node(&self, name: &str, version: Version, images: &[&str]) -> Result<Node> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let images = [&[PAUSE], images].concat();
        let mut lab = Containerd::start_on(version, true, &images, Subnets(number))?;
        network::connect(self.cell(), &lab.cell, number)?;
        let address = network::address(number);
        let kubelet = kubelet::prepare(self, name, &address, &mut lab)?;
        let mut node = Node { name: name.to_owned(), address, kubelet, lab };
        node.start_kubelet()?;
        wait_for(&format!("node {name}"), READY, || {
            node.kubelet.check()?;
            let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let ready = self.try_kubectl(&["get", "node", name, "-o", path])?;
            Ok((ready.stdout == b"True").then_some(()))
        })
        .with_context(|| node.kubelet.log_tail(20))?;
        node.lab.cell.keep_mounts()?;
        Ok(node)
    }
}

impl Node {
    /// The node's name in the API.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address by which the API server and other nodes reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The kubelet's folder, with a folder for each pod.
    pub fn kubelet_root(&self) -> PathBuf {
        kubelet::root(&self.lab)
    }

    /// Starts the kubelet when it does not run.
    pub fn start_kubelet(&self) -> Result<()> {
        self.kubelet.start(&self.lab.cell)
    }

    /// Ends the kubelet, kindly or with `kill -9`; pods go on.
    pub fn stop_kubelet(&self, kill: bool) -> Result<()> {
        self.kubelet.stop(kill)
    }

    /// The kubelet's resident memory in bytes, while it runs.
    pub fn kubelet_memory(&self) -> Option<u64> {
        self.kubelet.memory()
    }

    /// Fails when something is left of pods that are all deleted.
    pub fn check_traces(&self, patience: Duration) -> Result<()> {
        let left = Traces::settled(&self.lab, patience)?;
        if !left.is_empty() {
            bail!("left behind on {}: {left:#?}", self.name);
        }
        let folders = self.kubelet_root().join("pods");
        wait_for(&format!("the end of the folders in {}", folders.display()), patience, || {
            Ok(std::fs::read_dir(&folders)?.next().is_none().then_some(()))
        })
    }

    /// Prints the ends of the node's logs, for a test that has failed.
    pub fn print_logs(&self) {
        eprintln!("--- {}: the end of kubelet.log\n{}", self.name, self.kubelet.log_tail(60));
        for log in ["containerd.log", "node.log"] {
            eprintln!("--- {}: the end of {log}\n{}", self.name, self.lab.log_tail(log, 60));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.kubelet.stop(true) {
            eprintln!("kubelet of {}: {error:#}", self.name);
        }
    }
}
