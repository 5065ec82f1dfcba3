//! What the pod mounts for us: kubelet's folders on this host, whose contents a tenant wrote. Only regular files, all of them
//! bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use cloister_build::client::{Secret, Secrets};
use cloister_crds::{BuildReason, Failure, ImageBuildSpec, KeyRef, PushOutput, SecretKind, SecretRef};
use cloister_image::source::registry::DockerConfig;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::failure::failure;

/// Most bytes of the frozen spec; the API server's own limit is less.
const MAX_SPEC: u64 = 4 << 20;
/// Most bytes of a key of a Secret or ConfigMap.
const MAX_VALUE: u64 = 1 << 20;
/// Id of the secret that the certificates of `spec.caBundle` are to steps.
const CA_BUNDLE: &str = "ca-bundle";
/// Key of a Secret with docker's credentials.
const DOCKER: &str = ".dockerconfigjson";

/// The folders by what the pod calls them, such as `secrets/NAME`.
#[derive(Debug, Clone)]
pub struct Mounts(BTreeMap<PathBuf, PathBuf>);

impl Mounts {
    /// As the shim tells them.
    pub fn new(mounts: BTreeMap<PathBuf, PathBuf>) -> Self {
        Self(mounts)
    }

    /// The same for the source's room.
    pub fn all(&self) -> &BTreeMap<PathBuf, PathBuf> {
        &self.0
    }

    /// The spec as it was when the attempt started.
    pub fn spec(&self) -> Result<ImageBuildSpec, String> {
        let text = self.value(Path::new("spec"), cloister_crds::build_pod::SPEC, MAX_SPEC)?;
        serde_json::from_slice(&text.ok_or("there is none")?).map_err(|error| error.to_string())
    }

    /// A key of a Secret.
    pub fn secret(&self, reference: &KeyRef) -> Result<Vec<u8>, Failure> {
        let KeyRef { name, key } = reference;
        let missing =
            |why: &str| failure(BuildReason::SecretNotFound, format!("Secret {name}, key {key}: {why}"));
        let found = self.value(&Path::new("secrets").join(name), key, MAX_VALUE);
        found.map_err(|why| missing(&why))?.ok_or_else(|| missing("it does not exist"))
    }

    /// The secrets that steps mount as files, and among them the certificates of `spec.caBundle`: a mount leaves nothing in the image
    /// or the cache.
    pub fn secrets(&self, spec: &ImageBuildSpec) -> Result<Secrets, Failure> {
        let mut all = Secrets::default();
        if let Some(pem) = self.bundle(spec)? {
            let value = Secret::bytes(pem);
            let value = value.map_err(|error| failure(BuildReason::InvalidSpec, error.to_string()))?;
            all = all.with(CA_BUNDLE, value);
        }
        for secret in spec.secrets.iter().filter(|secret| secret.kind == SecretKind::Secret) {
            let value = Secret::bytes(self.secret(&secret.secret_key_ref)?);
            let value = value.map_err(|error| failure(BuildReason::InvalidSpec, error.to_string()))?;
            all = all.with(&secret.id, value);
        }
        Ok(all)
    }

    /// Private keys by the id of the agent that signs with them.
    pub fn keys(&self, spec: &ImageBuildSpec) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let keys = spec.secrets.iter().filter(|secret| secret.kind == SecretKind::Ssh);
        keys.map(|key| Ok((key.id.clone(), self.secret(&key.secret_key_ref)?))).collect()
    }

    /// Credentials of the registries that base images come from.
    pub fn registries(&self, spec: &ImageBuildSpec) -> Result<DockerConfig, Failure> {
        self.docker(&spec.image_pull_secrets, "imagePullSecrets")
    }

    /// Credentials of the registry that the result is pushed to.
    pub fn pushes(&self, to: &PushOutput) -> Result<DockerConfig, Failure> {
        self.docker(to.credentials.as_slice(), "output.push.credentials")
    }

    fn docker(&self, secrets: &[SecretRef], field: &str) -> Result<DockerConfig, Failure> {
        let reference = |name: &str| KeyRef { name: name.to_owned(), key: DOCKER.to_owned() };
        let secrets = secrets.iter().map(|secret| self.secret(&reference(&secret.name)));
        let texts = secrets.collect::<Result<Vec<_>, _>>()?;
        let config = DockerConfig::of(texts.iter().map(Vec::as_slice));
        config.map_err(|error| failure(BuildReason::AccessDenied, format!("{field}: {error}")))
    }

    /// The certificates of `spec.caBundle`, in a file of ours in the folder `work`.
    pub fn certificates(&self, spec: &ImageBuildSpec, work: &Path) -> Result<Option<PathBuf>, Failure> {
        let Some(pem) = self.bundle(spec)? else { return Ok(None) };
        let path = work.join("ca-bundle.pem");
        std::fs::write(&path, pem).map(|()| Some(path)).map_err(|error| {
            failure(BuildReason::ImportFailed, format!("cannot write the certificates: {error}"))
        })
    }

    fn bundle(&self, spec: &ImageBuildSpec) -> Result<Option<Vec<u8>>, Failure> {
        let Some(KeyRef { name, key }) = &spec.ca_bundle else { return Ok(None) };
        let missing = |why: &str| {
            let why = format!("spec.caBundle: ConfigMap {name}, key {key}: {why}");
            failure(BuildReason::SecretNotFound, why)
        };
        let found = self.value(&Path::new("config-maps").join(name), key, MAX_VALUE);
        found.map_err(|why| missing(&why))?.ok_or_else(|| missing("it does not exist")).map(Some)
    }

    fn value(&self, of: &Path, key: &str, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let Some(folder) = self.0.get(of) else { return Ok(None) };
        if key.contains('/') || key.starts_with("..") {
            return Err("not a key".to_owned());
        }
        // Anybody's pod may mount a volume of his own here. Kubelet's links stay in their folder, others may lead anywhere;
        // and opening a FIFO would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = File::open(folder).and_then(|folder| {
            let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            Ok(File::from(openat2(folder, key, flags, Mode::empty(), within)?))
        });
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if !file.metadata().is_ok_and(|data| data.is_file()) {
            return Err("not a file".to_owned());
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() as u64 > limit { Err(format!("longer than {limit} bytes")) } else { Ok(Some(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A Secret as kubelet shows it.
    fn mounted(keys: &[(&str, &str)]) -> (tempfile::TempDir, Mounts) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("..1")).unwrap();
        std::os::unix::fs::symlink("..1", folder.path().join("..data")).unwrap();
        for (key, value) in keys {
            std::fs::write(folder.path().join("..1").join(key), value).unwrap();
            std::os::unix::fs::symlink(format!("..data/{key}"), folder.path().join(key)).unwrap();
        }
        let mounts = Mounts::new([("secrets/s".into(), folder.path().to_owned())].into());
        (folder, mounts)
    }

    fn spec(secrets: serde_json::Value) -> ImageBuildSpec {
        serde_json::from_value(json!({"source": {}, "output": {}, "secrets": secrets})).unwrap()
    }

    #[test]
    fn keys_of_secrets_are_read_through_kubelets_links() {
        let (_folder, mounts) = mounted(&[("token", "hunter2"), ("id", "KEY")]);
        let spec = spec(json!([
            {"id": "t", "secretKeyRef": {"name": "s", "key": "token"}},
            {"id": "a", "type": "Ssh", "secretKeyRef": {"name": "s", "key": "id"}},
        ]));
        assert!(format!("{:?}", mounts.secrets(&spec).unwrap()).contains("Secret(7 bytes)"));
        assert_eq!(mounts.keys(&spec).unwrap(), [("a".to_owned(), b"KEY".to_vec())]);
    }

    #[test]
    fn links_that_lead_out_and_fifos_are_no_values() {
        let (folder, mounts) = mounted(&[("token", "hunter2")]);
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("fifo"), fifo, Mode::RUSR, 0).unwrap();
        for key in ["out", "fifo"] {
            assert!(mounts.value(Path::new("secrets/s"), key, 9).is_err(), "{key}");
        }
        assert!(mounts.value(Path::new("secrets/s"), "token", 9).unwrap().is_some());
    }

    #[test]
    fn certificates_are_read_within_their_folder() {
        let (folder, mounts) = mounted(&[("ca.crt", "PEM")]);
        let mounts =
            Mounts::new([("config-maps/trust".into(), mounts.0[Path::new("secrets/s")].clone())].into());
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("out")).unwrap();
        let work = tempfile::tempdir().unwrap();
        let certificates = |key: &str| {
            let mut spec = spec(json!([]));
            spec.ca_bundle = Some(KeyRef { name: "trust".into(), key: key.into() });
            mounts.certificates(&spec, work.path())
        };
        let file = certificates("ca.crt").unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "PEM");
        for key in ["out", "none"] {
            assert_eq!(certificates(key).unwrap_err().reason, BuildReason::SecretNotFound, "{key}");
        }
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        let (_folder, mounts) = mounted(&[]);
        for (name, key) in [("s", "token"), ("nowhere", "token"), ("s", "../x"), ("s", "..data")] {
            let spec = spec(json!([{"id": "t", "secretKeyRef": {"name": name, "key": key}}]));
            let failure = mounts.secrets(&spec).unwrap_err();
            assert_eq!(failure.reason, BuildReason::SecretNotFound, "{}", failure.message);
        }
        assert!(mounts.spec().is_err());
    }
}
