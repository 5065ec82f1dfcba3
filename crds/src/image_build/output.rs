//! Where a build's result goes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::refs::SecretRef;
use crate::rules::{IMAGE_NAME, PATH, REGISTRY, SUBDOMAIN, relative_path};
use crate::schema::bounded;

/// Where the result goes: into the image stores of nodes, to a registry, into an archive.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.images) || has(self.archive)")
        .message("set images, or an archive: a result that goes nowhere is not built"),
    validation = Rule::new("!has(self.nodes) || has(self.images)")
        .message("nodes needs images: a node knows an image by its name"),
    validation = Rule::new("!has(self.push) || has(self.images)")
        .message("push needs images: a registry knows an image by its name"),
    validation = Rule::new(
        "!has(self.push) || has(self.push.registry) || !has(self.images) \
         || self.images.all(image, image.matches('^(localhost|[^/]*[.:][^/]*)/'))"
    ).message("without push.registry every image names its own, such as registry.example.com/team/app:1.4"),
    validation = Rule::new(
        "!has(self.pin) || (has(self.images) && (has(self.nodes) || !(has(self.push) || has(self.archive))))"
    ).message("pin is about imported images: with push or archive, nodes has to say where to import")
)]
pub struct BuildOutput {
    /// Names of the image, such as "app:1.4"; the first is the one in status. Without a tag the image gets the first
    /// 12 hex digits of its digest as tag, since kubelet always pulls "latest". At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 384), regex(pattern = IMAGE_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub images: Vec<String>,
    /// Labels of the nodes that get the image; {} is every node. Default: the node that built it, or none when push
    /// or archive is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bounded)]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub nodes: Option<LabelSelector>,
    /// Push to a registry. The host's side does it: the build needs no network for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<PushOutput>,
    /// Write an archive into a persistent volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveOutput>,
    /// Keep the image out of kubelet's garbage collection for as long as this object exists. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<bool>,
}

/// A registry to push to.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PushOutput {
    /// Registry, with a path when needed: "registry.example.com/team" pushes "app:1.4" as
    /// "registry.example.com/team/app:1.4". Default: the registry in the image's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = REGISTRY))]
    pub registry: Option<String>,
    /// Secret of type kubernetes.io/dockerconfigjson. Default: push without credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
}

impl PushOutput {
    /// What `image` is called at the registry: in place of the registry that its name says, if it says one.
    pub fn name(&self, image: &str) -> String {
        let Some(registry) = &self.registry else { return image.to_owned() };
        let rest = match image.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => rest,
            _ => image,
        };
        format!("{registry}/{rest}")
    }
}

/// An archive in a persistent volume.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveOutput {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub claim_name: String,
    /// File in the volume, such as "images/app.tar"; it is replaced as a whole. Default: the object's name and ".tar".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub path: Option<String>,
    /// Oci: an OCI image layout in a tar. Docker: what docker save writes, for one platform and without attestations.
    #[serde(default)]
    pub format: ArchiveFormat,
}

/// Format of an archive.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ArchiveFormat {
    /// An OCI image layout in a tar.
    #[default]
    Oci,
    /// What `docker save` writes.
    Docker,
}
