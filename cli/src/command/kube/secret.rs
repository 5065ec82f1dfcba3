//! What `--secret` and `--ssh` name: keys of the cluster's Secrets, or values of this machine that become one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use cloister_crds::{BuildSecret, ImageBuild, KeyRef, SecretKind};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::args::kube::KubeBuildArgs;
use crate::command::build::inputs::fields;

/// Most bytes of all values: what a Secret may hold, less the rest of the object.
const MAX: usize = 1_000_000;

/// What was given.
#[derive(Default)]
pub struct Given {
    /// Secrets that the cluster has.
    pub there: Vec<BuildSecret>,
    /// Values of this machine, by id.
    here: BTreeMap<String, (SecretKind, Vec<u8>)>,
}

/// Reads the options, and the files and variables that they name.
pub fn read(args: &KubeBuildArgs) -> Result<Given> {
    let mut given = Given::default();
    for (option, kind, texts) in
        [("--secret", SecretKind::Secret, &args.secrets), ("--ssh", SecretKind::Ssh, &args.ssh)]
    {
        for text in texts {
            given.add(option, kind, text)?;
        }
    }
    let bytes: usize = given.here.values().map(|(_, value)| value.len()).sum();
    ensure!(bytes <= MAX, "the values of --secret and --ssh have {bytes} bytes: a Secret holds {MAX}");
    Ok(given)
}

impl Given {
    fn add(&mut self, option: &str, kind: SecretKind, text: &str) -> Result<()> {
        let fields = fields(option, text)?;
        let get = |keys: &[&str]| keys.iter().find_map(|key| fields.get(key).copied());
        let id = get(&["id"]).with_context(|| format!("{option} {text}: it has no id"))?.to_owned();
        let taken = self.here.contains_key(&id) || self.there.iter().any(|secret| secret.id == id);
        ensure!(!taken, "{option} {text}: the id {id} is given twice");
        match (get(&["secret"]), get(&["src", "source"]), get(&["env"])) {
            (Some(reference), None, None) => {
                let (name, key) = reference
                    .split_once('/')
                    .with_context(|| format!("{option} {text}: `{reference}` is not NAME/KEY of a Secret"))?;
                let secret_key_ref = KeyRef { name: name.to_owned(), key: key.to_owned() };
                self.there.push(BuildSecret { id, kind, secret_key_ref });
            }
            (None, Some(path), None) => {
                let mut value = Vec::new();
                let read =
                    File::open(path).and_then(|file| file.take(MAX as u64 + 1).read_to_end(&mut value));
                read.with_context(|| format!("{option} {text}: cannot read {path}"))?;
                self.here.insert(id, (kind, value));
            }
            (None, None, Some(name)) => {
                let value = std::env::var(name).with_context(|| format!("{option} {text}: {name}"))?;
                self.here.insert(id, (kind, value.into_bytes()));
            }
            _ => bail!("{option} {text}: it needs one of src=FILE, env=VARIABLE and secret=NAME/KEY"),
        }
        Ok(())
    }

    /// Whether a Secret has to be made.
    pub fn any_here(&self) -> bool {
        !self.here.is_empty()
    }

    /// The Secret of the values of this machine. It is the build's: it goes with it.
    pub fn secret(&self, build: &ImageBuild) -> Secret {
        let name = build.metadata.name.clone().unwrap_or_default();
        let data = self.here.iter().map(|(id, (_, value))| (id.clone(), ByteString(value.clone()))).collect();
        Secret {
            metadata: ObjectMeta {
                // The API server adds what makes it a new one: nothing that is there is ever changed.
                generate_name: Some(format!("{name}-")),
                owner_references: Some(vec![OwnerReference {
                    api_version: ImageBuild::api_version(&()).into_owned(),
                    kind: ImageBuild::kind(&()).into_owned(),
                    name,
                    uid: build.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            data: Some(data),
            immutable: Some(true),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }

    /// All of them, those of this machine in the Secret `name`.
    pub fn in_secret(&self, name: &str) -> Vec<BuildSecret> {
        let here = self.here.iter().map(|(id, (kind, _))| BuildSecret {
            id: id.clone(),
            kind: *kind,
            secret_key_ref: KeyRef { name: name.to_owned(), key: id.clone() },
        });
        self.there.iter().cloned().chain(here).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(text: &str) -> Result<Given> {
        let mut given = Given::default();
        given.add("--secret", SecretKind::Secret, text).map(|()| given)
    }

    #[test]
    fn secrets_are_the_cluster_s_or_become_one_that_goes_with_the_build() {
        let mut given = add("id=a,secret=tokens/npm").unwrap();
        assert!(!given.any_here());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2").unwrap();
        given.add("--ssh", SecretKind::Ssh, &format!("id=b,src={}", file.path().display())).unwrap();
        assert!(given.any_here());
        let mut build: ImageBuild = serde_json::from_value(serde_json::json!({
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": "app", "uid": "1-2"},
            "spec": {"source": {}, "output": {}},
        }))
        .unwrap();
        let secret = given.secret(&build);
        assert_eq!(secret.data.unwrap()["b"].0, b"hunter2");
        let owner = &secret.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("ImageBuild", "1-2"));
        build.spec.secrets = given.in_secret("app-x7");
        let text = serde_json::to_string(&build).unwrap();
        assert!(text.contains(r#"{"name":"app-x7","key":"b"}"#) && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for bad in [
            "",
            "a",
            "id=a",
            "src=/x",
            "id=a,secret=tokens",
            "id=a,src=/x,secret=b/c",
            "id=a,src=/nowhere/at/all",
            "id=a,env=CLOISTER_SURELY_UNSET",
        ] {
            assert!(add(bad).is_err(), "{bad}");
        }
        let twice = ["id=a,secret=b/c", "id=a,secret=b/d"];
        let mut given = Given::default();
        assert!(given.add("--secret", SecretKind::Secret, twice[0]).is_ok());
        assert!(given.add("--ssh", SecretKind::Ssh, twice[1]).is_err());
    }
}
