//! What surrounds a build: arguments, network, cache, machine, attestations.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{IMAGE_NAME, IMAGE_REF, LABEL, no_password};
use crate::schema::quantity;

/// One `ARG` of the Dockerfile.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildArg {
    /// Name of the ARG.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// What RUN steps can reach.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// What the build's pod can reach.
    Egress,
}

/// Proxies for RUN steps; they do not become part of the image.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Proxy for http, such as "http://proxy.example.com:3128".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[!-~]+$"))]
    #[x_kube(validation = no_password())]
    pub http_proxy: Option<String>,
    /// Proxy for https.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[!-~]+$"))]
    #[x_kube(validation = no_password())]
    pub https_proxy: Option<String>,
    /// Hosts, domains and networks to reach without a proxy, such as ".svc" and "10.0.0.0/8".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253), regex(pattern = r"^[!-+.-~]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub no_proxy: Vec<String>,
}

/// What is kept from one build to the next.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildCache {
    /// Builds of one namespace with one key share a cache disk on each node. Default: "default".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub key: Option<String>,
    /// Most that the disk may take of a node, such as "20Gi"; the oldest is given up first. Default: what the
    /// operator is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub size: Option<Quantity>,
    /// Neither use nor fill the cache disk.
    #[serde(default)]
    pub disabled: bool,
    /// Images whose cache is used too, such as "registry.example.com/team/app:cache".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 512), regex(pattern = IMAGE_REF)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub from: Vec<String>,
    /// Images that the cache is pushed to, with the credentials of imagePullSecrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["image".into()]))]
    pub to: Vec<CacheExport>,
}

/// An image that a cache is pushed to.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheExport {
    /// Name of the image, such as "registry.example.com/team/app:cache".
    #[schemars(length(min = 1, max = 384), regex(pattern = IMAGE_NAME))]
    pub image: String,
    /// Min: layers of the result. Max: layers of every stage.
    #[serde(default)]
    pub mode: CacheMode,
}

/// How much of a cache is pushed.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheMode {
    /// Layers of the result.
    #[default]
    Min,
    /// Layers of every stage.
    Max,
}

/// Size of the build's microVM.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler counts. Default: the limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceList>,
    /// What the build may use: processors and memory of its machine, size of its scratch disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceList>,
}

/// Amounts of what a machine is made of.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceList {
    /// Processors, such as "2" or "1500m".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub cpu: Option<Quantity>,
    /// Memory, such as "2Gi". A build that needs more fails with the reason OutOfMemory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub memory: Option<Quantity>,
    /// Disk for what is not cached, such as "20Gi".
    #[serde(default, rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub ephemeral_storage: Option<Quantity>,
}

/// What is attached to the image about how it was made.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attestations {
    /// A list of the packages in the image (SPDX).
    #[serde(default)]
    pub sbom: bool,
    /// How it was built (SLSA). Min: sources and parameters that are not secret. Max: everything, arguments included.
    #[serde(default)]
    pub provenance: Provenance,
}

/// How much of its making is attached to the image.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Provenance {
    /// Nothing.
    #[default]
    None,
    /// Sources, and parameters that are not secret.
    Min,
    /// Everything, arguments included.
    Max,
}
