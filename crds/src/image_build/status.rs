//! What is known about a build.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::Attempt;
use crate::rules::{DIGEST, SUBDOMAIN};
use crate::schema::conditions;

/// What is known about a build. The operator writes it, but for `nodes`, where each node writes its own entry.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildStatus {
    /// The metadata.generation that everything else here is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Where the build is, in one word for people; programs read conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Finished steps of the Dockerfile and all of them, such as "7/12".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
    /// Ready: every selected node can run the image. Reconciling: work goes on. Stalled: nothing will happen until
    /// the spec or what it refers to changes. Succeeded: result of the newest attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Full name of the image, such as "docker.io/library/app:1.4": what a pod may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// Digest of the image's manifest or index.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub digest: Option<String>,
    /// How large the image is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Sizes>,
    /// Node of the newest attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = SUBDOMAIN))]
    pub node: Option<String>,
    /// When the newest attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the newest attempt finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Selected nodes that can run the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub nodes_ready: Option<i32>,
    /// Selected nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub nodes_selected: Option<i32>,
    /// The image on each selected node, for at most 1000 nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeImage>,
    /// The running attempt and as many finished ones as spec.history says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 21))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["number".into()]))]
    pub attempts: Vec<Attempt>,
    /// Last lines of the newest attempt's log, at most 8 KiB. All of it: kubectl cloister logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub log_tail: Option<String>,
    /// What triggers had when they were last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub triggers: Option<ObservedTriggers>,
}

/// Where the build is, in one word for people; programs read conditions.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Phase {
    /// Waits for its turn, for a node or for its pod.
    #[default]
    Pending,
    /// An attempt runs.
    Building,
    /// The image is on its way to nodes, registry or archive.
    Distributing,
    /// The image is everywhere it should be.
    Succeeded,
    /// The newest attempt failed and no other follows.
    Failed,
    /// `spec.cancel` ended it.
    Cancelled,
    /// `spec.suspend` holds it.
    Suspended,
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

/// How large an image is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sizes {
    /// Bytes of its layers as a registry holds them.
    #[schemars(range(min = 0))]
    pub compressed_bytes: i64,
    /// Bytes of its layers as tar archives.
    #[schemars(range(min = 0))]
    pub unpacked_bytes: i64,
    /// Number of its layers.
    #[schemars(range(min = 0, max = 1024))]
    pub layers: i32,
}

/// The image on one node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeImage {
    /// Name of the node.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub name: String,
    /// Pending, Importing, Ready, Failed, or Unknown.
    pub state: NodeState,
    /// Digest of what the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub digest: Option<String>,
    /// Whether kubelet's garbage collection leaves it alone.
    #[serde(default)]
    pub pinned: bool,
    /// Why it failed, or what it waits for, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When state last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// How far one node is.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum NodeState {
    /// Selected.
    #[default]
    Pending,
    /// Fetches or imports.
    Importing,
    /// A pod can run the image.
    Ready,
    /// Could not import; tried again with growing intervals.
    Failed,
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

/// What triggers had when they were last looked at.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedTriggers {
    /// Value of the annotation that the newest attempt was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub annotation: Option<String>,
    /// The last time of the schedule that has had its attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Base images of the newest result, and the digests that their tags had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["image".into()]))]
    pub base_images: Vec<BaseImage>,
    /// Those of baseImages that spec.triggers.baseImage had asked for again, and the digests that their tags have by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["image".into()]))]
    pub latest_base_images: Vec<BaseImage>,
    /// What latestBaseImages was when the newest attempt started, in 16 hex digits: no attempt is started twice for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[a-f0-9]{16}$"))]
    pub seen_base_images: Option<String>,
}

/// A base image of the newest result.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseImage {
    /// Its full name.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// The digest it had.
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub digest: String,
}
