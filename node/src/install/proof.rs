//! The self-test of an installation: a microVM boots on this node, by the way that pods take from containerd on.
//!
//! It is a sandbox of containerd's without containers, image or network: a CNI plugin may want to look up its pod in
//! the cluster, and there is none.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use tracing::info;

use crate::containerd::scope::Scope;

/// The sandbox's id: what an interrupted self-test left is found again.
const ID: &str = "cloister-self-test";
/// Bytes of memory that the machine has for containers.
const MEMORY: u64 = 64 << 20;

/// Boots a machine with this shim and ends it again.
pub async fn boot(containerd: &Scope, shim: &Path) -> Result<()> {
    containerd.end_container(ID).await.context("cannot remove the last self-test")?;
    let spec = json!({
        "ociVersion": "1.1.0",
        "hostname": ID,
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": ID,
            "io.kubernetes.cri.sandbox-memory": MEMORY.to_string(),
        },
        "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "network"}]},
    });
    let begun = Instant::now();
    // The shim answers once the guest's agent does.
    let started = containerd.start_container(ID, shim, &spec).await;
    let milliseconds = begun.elapsed().as_millis();
    let ended = containerd.end_container(ID).await;
    started.context("no microVM boots on this node")?;
    info!(milliseconds, "a microVM booted");
    ended.context("the self-test's microVM does not end")
}
