//! Where a build's files come from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::refs::{KeyRef, SecretRef};
use crate::rules::{DIGEST, IMAGE_REF, KEY, PATH, SUBDOMAIN, no_password, relative_path};

/// The build context: exactly one member is set.
///
/// A struct of options and not an enum: a controller that meets a source it does not know yet can say so in
/// the object's status, while an enum would make the whole list unreadable to it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "[has(self.inline), has(self.configMap), has(self.git), has(self.http), has(self.oci), \
     has(self.persistentVolumeClaim), has(self.upload)].exists_one(set, set)"
).message("set exactly one of inline, configMap, git, http, oci, persistentVolumeClaim, upload"))]
pub struct BuildSource {
    /// Files written in this object, for builds that need no more than a Dockerfile and a few scripts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
    /// The keys of a ConfigMap of the same namespace, as files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
    /// A git repository, fetched on the host's side: its credentials never enter the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// A tar archive behind a URL, plain or compressed with gzip or zstd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// The files of an OCI artifact or image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// A folder of a persistent volume, which is only read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A folder that `kubectl cloister build` has uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadSource>,
}

/// Files written in the object.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineSource {
    /// Text of the Dockerfile; it gets the name that spec.dockerfile says. At most 128 KiB.
    #[schemars(length(min = 1, max = 131_072))]
    pub dockerfile: String,
    /// Further files of the context, at most 64 and 1 MiB with everything else in the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub files: Vec<InlineFile>,
}

/// One file of an inline source.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.content) != has(self.contentBase64)")
    .message("set content or contentBase64, not both"))]
pub struct InlineFile {
    /// Name of the file below the context, such as "scripts/setup.sh".
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub path: String,
    /// The file's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 524_288))]
    pub content: Option<String>,
    /// The file's bytes in base64, when they are not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 524_288), regex(pattern = r"^[A-Za-z0-9+/\n]*={0,2}\n?$"))]
    pub content_base64: Option<String>,
    /// Permission bits, such as 0755 (YAML reads it as octal; JSON needs 493). Default: 0644.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 511))]
    pub mode: Option<i32>,
}

/// The keys of a ConfigMap as files.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapSource {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub name: String,
    /// Which keys become which files. Default: every key, under its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub items: Vec<KeyToPath>,
}

/// One key of a ConfigMap and the file it becomes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyToPath {
    /// Key in the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = KEY))]
    pub key: String,
    /// Name of the file below the context, such as "conf/app.toml".
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub path: String,
    /// Permission bits, such as 0755 (YAML reads it as octal; JSON needs 493). Default: 0644.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 511))]
    pub mode: Option<i32>,
}

/// A git repository.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// Address of the repository: https://, ssh:// or git@host:path.
    #[schemars(length(max = 2048), regex(pattern = r"^(https://|ssh://|git@)[!-~]+$"))]
    #[x_kube(validation = no_password())]
    pub url: String,
    /// Branch, tag, full reference or commit, such as "v1.4.2" or 40 hex digits. Default: the remote's HEAD.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_./+@#-]*$"))]
    pub reference: Option<String>,
    /// Folder of the repository that is the context, such as "services/api". Default: the whole repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub subdir: Option<String>,
    /// Secret of type kubernetes.io/basic-auth (https) or kubernetes.io/ssh-auth with known_hosts (ssh).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
    /// Fetch submodules too, with the same credentials when they are on the same host.
    #[serde(default)]
    pub submodules: bool,
}

/// A tar archive behind a URL.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Address of the archive, such as "https://example.com/app-1.4.tar.gz".
    #[schemars(length(max = 2048), regex(pattern = r"^[a-z]+://[!-~]+$"))]
    #[x_kube(validation = Rule::new("self.startsWith('https://')").message("must begin with https://"))]
    #[x_kube(validation = no_password())]
    pub url: String,
    /// Digest of the archive as it is downloaded: "sha256:" and 64 hex digits.
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub checksum: String,
    /// Folder of the archive that is the context, such as "app-1.4". Default: the archive's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub subdir: Option<String>,
    /// Secret of type kubernetes.io/basic-auth, sent to this host only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
}

/// The files of an OCI artifact or image.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// Reference with tag or digest, such as "registry.example.com/team/source:1.4". Credentials: spec.imagePullSecrets.
    #[schemars(length(min = 1, max = 512), regex(pattern = IMAGE_REF))]
    pub reference: String,
    /// Folder that is the context. Default: the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub subdir: Option<String>,
}

/// A folder of a persistent volume.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub claim_name: String,
    /// Folder of the volume that is the context. Default: the volume's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    #[x_kube(validation = relative_path())]
    pub sub_path: Option<String>,
}

/// A folder uploaded before the object was made.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadSource {
    /// Digest of the uploaded archive: "sha256:" and 64 hex digits. It is checked before the build starts.
    #[schemars(length(max = 71), regex(pattern = DIGEST))]
    pub digest: String,
}

/// A secret that RUN steps may mount.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecret {
    /// Name in the Dockerfile: RUN --mount=type=secret,id=ID, or type=ssh,id=ID.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"))]
    pub id: String,
    /// Secret: a file with the value. Ssh: an agent that signs with this private key, which itself is not shown.
    #[serde(rename = "type", default)]
    pub kind: SecretKind,
    /// Where the value is.
    pub secret_key_ref: KeyRef,
}

/// How a secret is offered to RUN steps.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum SecretKind {
    /// A file with the value.
    #[default]
    Secret,
    /// An ssh agent with the key.
    Ssh,
}
