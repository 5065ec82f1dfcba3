//! `ImageBuild`: a Dockerfile built in a microVM, its image imported into nodes, pushed or archived.

mod attempt;
mod environment;
mod output;
mod policy;
mod reason;
mod source;
mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use attempt::{Attempt, Failure, Stage, StageName, Steps, TriggerKind};
pub use environment::{
    Attestations, BuildArg, BuildCache, CacheExport, CacheMode, Network, Provenance, Proxy, ResourceList,
    Resources,
};
pub use output::{ArchiveFormat, ArchiveOutput, BuildOutput, PushOutput};
pub use policy::{BaseImageTrigger, History, REBUILD, ScheduleTrigger, Triggers};
pub use reason::{BuildReason, ConditionType};
pub use source::{
    BuildSecret, BuildSource, ClaimSource, ConfigMapSource, GitSource, HttpSource, InlineFile, InlineSource,
    KeyToPath, OciSource, SecretKind, UploadSource,
};
pub use status::{BaseImage, ImageBuildStatus, NodeImage, NodeState, ObservedTriggers, Phase, Sizes};

use crate::refs::{KeyRef, SecretRef};
use crate::rules::{PATH, SUBDOMAIN, between, relative_path};
use crate::schema::{bounded, string_map};

/// What to build, from what, and where the result goes.
///
/// The spec may be changed at any time: as with a CronJob, what is running goes on with what it was started with
/// (`status.attempts[].generation`), and a new attempt follows.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "cloister.dev",
    version = "v1alpha1",
    kind = "ImageBuild",
    namespaced,
    status = "ImageBuildStatus",
    shortname = "imgb",
    category = "cloister",
    derive = "PartialEq",
    doc = "ImageBuild builds a Dockerfile in a microVM of its own and imports the image into nodes, pushes or archives it.",
    // What is derived from the name (pods, labels) must stay within 63 characters.
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must be at most 52 characters"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.output.images[0]", description = "first name of the image"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "where the build is"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress", description = "finished steps of the Dockerfile and all of them"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", description = "digest of the image", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", description = "where it is or was built"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.source.inline) || !has(self.source.inline.files) \
         || !self.source.inline.files.exists(file, file.path == self.dockerfile)"
    ).message("source.inline.files must not hold the Dockerfile: its text is source.inline.dockerfile"),
    validation = Rule::new("!has(self.proxy) || self.network == 'Egress'")
        .message("proxy needs network: Egress: without a network no step can reach it"),
    validation = Rule::new(
        "!has(self.platforms) || self.platforms.size() < 2 \
         || !has(self.output.archive) || self.output.archive.format != 'Docker'"
    ).message("an archive of format Docker holds one platform: use Oci"),
    validation = Rule::new(
        "!has(self.attestations) || (!self.attestations.sbom && self.attestations.provenance == 'None') \
         || !has(self.output.archive) || self.output.archive.format != 'Docker'"
    ).message("an archive of format Docker holds no attestations: use Oci")
)]
pub struct ImageBuildSpec {
    /// Where the build's files come from: exactly one of its members is set.
    pub source: BuildSource,
    /// Path of the Dockerfile in the source, such as "build/Dockerfile".
    #[serde(default = "dockerfile")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub dockerfile: String,
    /// Stage to build: a name after AS, or its number. Default: the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"))]
    pub target: Option<String>,
    /// Values for the Dockerfile's ARGs. They can be read from the image: what is secret belongs into secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub args: Vec<BuildArg>,
    /// Labels of the image's configuration, such as org.opencontainers.image.source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the image's manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map")]
    pub annotations: BTreeMap<String, String>,
    /// Secrets and ssh keys that RUN steps may mount; they reach the build in memory, never the image or the cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub secrets: Vec<BuildSecret>,
    /// Secrets of type kubernetes.io/dockerconfigjson for base images, sources and caches, as in a pod. Only the
    /// host's side uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// Platforms of the image, such as "linux/amd64" and "linux/arm64". Default: that of the building node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 64), regex(pattern = r"^linux/[a-z0-9]+(/v[0-9]+)?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub platforms: Vec<String>,
    /// None: RUN steps have no network, and base images come through the host. Egress: steps share the pod's network.
    #[serde(default)]
    pub network: Network,
    /// Proxies for RUN steps, which get them as HTTP_PROXY, http_proxy and so on unless args has such a name; neither the
    /// image nor its history has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Key of a ConfigMap with certificates in PEM. The host's side trusts them for this build: for sources, base images,
    /// caches and registries. RUN steps get them as the secret "ca-bundle" where they ask, such as
    /// "RUN --mount=type=secret,id=ca-bundle SSL_CERT_FILE=/run/secrets/ca-bundle npm ci", so that the image does not keep
    /// them; a secret of this id in secrets is given instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<KeyRef>,
    /// What is kept from one build to the next.
    #[serde(default)]
    pub cache: BuildCache,
    /// Where the result goes.
    pub output: BuildOutput,
    /// Size of the build's microVM. Default: what the operator is configured with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels of nodes that may build, as in a pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the build tolerates, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = bounded)]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// Which nodes to prefer or avoid, as in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bounded)]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub affinity: Option<Affinity>,
    /// PriorityClass of the build: its place in the queue, and its pod's priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub priority_class_name: Option<String>,
    /// Longest time of one attempt from its pod's start, such as "90m".
    #[serde(default = "timeout")]
    #[schemars(schema_with = "crate::schema::duration")]
    #[x_kube(validation = between("10s", "24h"))]
    pub timeout: Duration,
    /// How often to try again when the build was not at fault: a lost node, an evicted pod, a registry that did not
    /// answer. A Dockerfile that fails is not tried again.
    #[serde(default = "retries")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
    /// Time in seconds since 1970 that stands in the image instead of the time of the build: equal inputs then give
    /// an equal digest. Default: the time of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 253_402_300_799_i64))]
    pub source_date_epoch: Option<i64>,
    /// What is attached to the image about how it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestations: Option<Attestations>,
    /// Start no attempt while true; one that runs goes on, as with a CronJob.
    #[serde(default)]
    pub suspend: bool,
    /// End the running attempt and start no other while true.
    #[serde(default)]
    pub cancel: bool,
    /// Delete this object so many seconds after it has finished, for builds nobody triggers again. Its images go
    /// from their nodes with it; what was pushed or archived stays. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// How many finished attempts are kept in status, with their logs.
    #[serde(default)]
    pub history: History,
    /// What else than a changed spec starts a new attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub triggers: Option<Triggers>,
}

fn dockerfile() -> String {
    "Dockerfile".into()
}

fn timeout() -> Duration {
    std::time::Duration::from_secs(3600).into()
}

fn retries() -> i32 {
    2
}
