//! What a build's pod mounts for the host's side, and what else a source may need.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use cloister_build::context::Context;
use cloister_crds::{BuildReason, KeyRef, SecretRef};
use cloister_image::source::registry::DockerConfig;
use tokio::io::AsyncRead;

use crate::{Error, Limits, Result};

/// Most bytes of a Secret or ConfigMap: the API server's own limit is less.
const MAX_VALUE: u64 = 4 << 20;

/// Everything that a source may be made of.
#[derive(Default)]
pub struct Inputs {
    /// Folders on the host by what the pod calls them: `secrets/NAME`, `config-maps/NAME`, `claims/NAME`.
    pub mounts: BTreeMap<PathBuf, PathBuf>,
    /// Certificates to trust beside the system's: a key of a ConfigMap among the mounts.
    pub ca_bundle: Option<KeyRef>,
    /// Secrets among the mounts with docker's credentials.
    pub pull_secrets: Vec<SecretRef>,
    /// What arrives on the container's standard input.
    pub upload: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    /// Folder of this build's uploads, which are kept there. Default: the attempt's own folder.
    pub uploads: Option<PathBuf>,
    /// How large a source may be, and how long it may take.
    pub limits: Limits,
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mounts, ca_bundle, pull_secrets, upload, uploads, limits } = self;
        f.debug_struct("Inputs")
            .field("mounts", mounts)
            .field("ca_bundle", ca_bundle)
            .field("pull_secrets", pull_secrets)
            .field("upload", &upload.is_some())
            .field("uploads", uploads)
            .field("limits", limits)
            .finish()
    }
}

impl Inputs {
    /// Where on the host a mount of the pod is.
    pub(crate) fn mount(&self, kind: &str, name: &str) -> Option<&Path> {
        self.mounts.get(&Path::new(kind).join(name)).map(PathBuf::as_path)
    }

    /// A key of a mounted Secret; `None` when there is no such key.
    pub(crate) fn secret(&self, name: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(folder) = self.mount("secrets", name) else { return Ok(None) };
        value(folder, key).map_err(|why| {
            Error::new(BuildReason::SecretNotFound, format!("Secret {name}, key {key}: {why}"))
        })
    }

    /// A key of a mounted Secret that has to be there.
    pub(crate) fn needed_secret(&self, field: &str, name: &str, key: &str) -> Result<Vec<u8>> {
        self.secret(name, key)?.ok_or_else(|| {
            let why = format!("{field}: Secret {name} does not exist, or has no key {key}");
            Error::new(BuildReason::SecretNotFound, why)
        })
    }

    /// User name and password of a Secret of type `kubernetes.io/basic-auth`; servers that want a token alone take any name.
    pub(crate) fn password(&self, field: &str, name: &str) -> Result<(String, String)> {
        let text = |key: &str, bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control));
            let why = format!("{field}: Secret {name}: the {key} is not one line of text");
            text.ok_or_else(|| Error::new(BuildReason::InvalidSpec, why))
        };
        let password = text("password", self.needed_secret(field, name, "password")?)?;
        let user =
            self.secret(name, "username")?.map_or(Ok("git".to_owned()), |user| text("username", user))?;
        Ok((user, password))
    }

    /// Docker's credentials of all pull secrets together.
    pub(crate) fn docker(&self) -> Result<DockerConfig> {
        const FIELD: &str = "spec.imagePullSecrets";
        let names = self.pull_secrets.iter().map(|secret| secret.name.as_str());
        let texts = names.map(|name| self.needed_secret(FIELD, name, ".dockerconfigjson"));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        DockerConfig::of(texts.iter().map(Vec::as_slice))
            .map_err(|error| Error::new(BuildReason::InvalidSpec, format!("{FIELD}: {error}")))
    }

    /// The bundle of certificates.
    pub(crate) fn certificates(&self) -> Result<Option<Vec<u8>>> {
        let Some(KeyRef { name, key }) = &self.ca_bundle else { return Ok(None) };
        let missing = |why: &str| {
            Error::new(
                BuildReason::SecretNotFound,
                format!("spec.caBundle: ConfigMap {name}, key {key}: {why}"),
            )
        };
        let folder = self.mount("config-maps", name).ok_or_else(|| missing("it does not exist"))?;
        let found = value(folder, key).map_err(|why| missing(&why))?;
        found.ok_or_else(|| missing("it does not exist")).map(Some)
    }
}

/// A key of a mounted object. kubelet makes links to where the values are, which stay in the folder.
pub(crate) fn value(folder: &Path, key: &str) -> Result<Option<Vec<u8>>, String> {
    let opened = Context::folder(folder).map_err(|error| error.to_string())?;
    match opened.read(key, MAX_VALUE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
