//! This node's entry in the status of a build.

use cloister_crds::{ImageBuild, NodeImage, NodeState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::json;

use super::build::Build;

/// Most characters of a message.
const MAX_MESSAGE: usize = 1024;

/// An entry without its time.
pub fn entry(node: &str, state: NodeState, digest: Option<String>, pinned: bool, why: &str) -> NodeImage {
    let why: String = why.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
    let message = Some(why).filter(|why| !why.is_empty());
    NodeImage { name: node.to_owned(), state, digest, pinned, message, last_transition_time: None }
}

/// Whether two entries say the same.
pub fn says(one: &NodeImage, other: &NodeImage) -> bool {
    let bare = |entry: &NodeImage| NodeImage { last_transition_time: None, ..entry.clone() };
    bare(one) == bare(other)
}

/// The entry with the time at which its state began.
pub fn timed(wanted: NodeImage, before: Option<&NodeImage>, now: jiff::Timestamp) -> NodeImage {
    let since = before.filter(|before| before.state == wanted.state);
    let since = since.and_then(|before| before.last_transition_time.clone());
    NodeImage { last_transition_time: since.or(Some(Time(now))), ..wanted }
}

/// Applies the entry, or takes it back. It stands for all that this node's store has to say about the build.
pub async fn write(
    client: &Client,
    node: &str,
    build: &Build,
    entry: Option<&NodeImage>,
) -> kube::Result<()> {
    let object = json!({
        "apiVersion": ImageBuild::api_version(&()),
        "kind": ImageBuild::kind(&()),
        // Another object of this name is not meant.
        "metadata": {"name": build.name, "uid": build.uid},
        "status": {"nodes": entry.into_iter().collect::<Vec<_>>()},
    });
    let builds: Api<ImageBuild> = Api::namespaced(client.clone(), &build.namespace);
    let params = PatchParams::apply(&format!("cloister-node/{node}"));
    builds.patch_status(&build.name, &params, &Patch::Apply(object)).await.map(drop)
}
