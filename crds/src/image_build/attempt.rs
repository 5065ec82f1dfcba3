//! One run of a build, and how it went.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::BuildReason;
use crate::rules::{DIGEST, SUBDOMAIN};

/// One run of the build.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Counts from 1 over the object's life.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// The metadata.generation it builds; later changes of the spec are for the next attempt.
    #[schemars(range(min = 0))]
    pub generation: i64,
    /// What of the spec makes a difference to the image, in 16 hex digits: a finished build is not repeated for a change
    /// elsewhere, such as of history.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[a-f0-9]{16}$"))]
    pub fingerprint: Option<String>,
    /// Why it was started: Spec, BaseImage, Schedule, Annotation, Retry, or Unknown.
    pub trigger: TriggerKind,
    /// Its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = SUBDOMAIN))]
    pub pod: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = SUBDOMAIN))]
    pub node: Option<String>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// When each part of it started and how long it took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<Stage>,
    /// Steps of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
    /// Digest of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub digest: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Why an attempt was started.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum TriggerKind {
    /// The object was made, or its spec changed.
    #[default]
    Spec,
    /// A base image has another digest.
    BaseImage,
    /// It was time.
    Schedule,
    /// The annotation has another value.
    Annotation,
    /// The attempt before it failed through no fault of its own.
    Retry,
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

/// One part of an attempt.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Queue, Schedule, Boot, Connect, Solve, Export, Import, Push, Archive, or Unknown.
    pub name: StageName,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// How long it took in milliseconds; absent while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub duration_milliseconds: Option<i64>,
}

/// Parts of an attempt in their order.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum StageName {
    /// Waiting for its turn.
    #[default]
    Queue,
    /// Waiting for a node.
    Schedule,
    /// Until the guest's agent answers.
    Boot,
    /// Until BuildKit answers.
    Connect,
    /// The Dockerfile.
    Solve,
    /// The result leaves the guest.
    Export,
    /// The building node imports it.
    Import,
    /// To the registry.
    Push,
    /// To the archive.
    Archive,
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

/// Steps of a Dockerfile.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// All that the target needs.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// Finished ones.
    #[schemars(range(min = 0))]
    pub completed: i32,
    /// Finished ones whose result was in a cache.
    #[schemars(range(min = 0))]
    pub cached: i32,
    /// Share of the finished ones that were cached, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub cached_percent: i32,
}

/// Why an attempt failed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word for programs, such as StepFailed or OutOfMemory.
    pub reason: BuildReason,
    /// One line for people: what failed, and what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The failed step as the log shows it, such as "[build 3/7] RUN make".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub step: Option<String>,
    /// Line of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub line: Option<i32>,
    /// Exit code of the step's command.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub exit_code: Option<i32>,
    /// Most memory in bytes that the build had used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub memory_peak_bytes: Option<i64>,
}
