//! What the pod mounts: the frozen spec, and what the build names: Secrets, ConfigMaps, claims. Everything is
//! optional, so that something missing becomes a reason in the status and not a pod that hangs.

use std::collections::{BTreeMap, BTreeSet};

use cloister_crds::build_pod::HOST;
use cloister_crds::{Attempt, ImageBuild};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource, SecretVolumeSource, Volume,
    VolumeMount,
};

/// Keys of an object: some, or all when none is named.
type Keys = Option<BTreeSet<String>>;

/// Volumes and where they are mounted.
pub fn volumes(build: &ImageBuild, attempt: &Attempt) -> (Vec<Volume>, Vec<VolumeMount>) {
    let spec = &build.spec;
    let mut all = All::default();
    let name = super::name(build.metadata.name.as_deref().unwrap_or_default(), attempt.number);
    all.add(
        "spec".into(),
        "spec",
        Volume {
            config_map: Some(ConfigMapVolumeSource { name, ..ConfigMapVolumeSource::default() }),
            ..Volume::default()
        },
    );
    for (index, (name, keys)) in secrets(build).into_iter().enumerate() {
        all.add(
            format!("secret-{index}"),
            &format!("secrets/{name}"),
            Volume {
                secret: Some(SecretVolumeSource {
                    secret_name: Some(name),
                    items: items(keys),
                    default_mode: Some(0o400),
                    optional: Some(true),
                }),
                ..Volume::default()
            },
        );
    }
    for (index, (name, keys)) in config_maps(build).into_iter().enumerate() {
        all.add(
            format!("config-{index}"),
            &format!("config-maps/{name}"),
            Volume {
                config_map: Some(ConfigMapVolumeSource {
                    name,
                    items: items(keys),
                    optional: Some(true),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
        );
    }
    let mut claims: BTreeMap<&str, bool> = BTreeMap::new();
    if let Some(claim) = &spec.source.persistent_volume_claim {
        claims.insert(&claim.claim_name, true);
    }
    // Written to as well, when both are the same.
    if let Some(archive) = &spec.output.archive {
        claims.insert(&archive.claim_name, false);
    }
    for (index, (name, read_only)) in claims.into_iter().enumerate() {
        all.add(
            format!("claim-{index}"),
            &format!("claims/{name}"),
            Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: name.to_owned(),
                    read_only: read_only.then_some(true),
                }),
                ..Volume::default()
            },
        );
        if !read_only && let Some(mount) = all.mounts.last_mut() {
            mount.read_only = None;
        }
    }
    (all.volumes, all.mounts)
}

#[derive(Default)]
struct All {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

impl All {
    fn add(&mut self, name: String, path: &str, volume: Volume) {
        self.mounts.push(VolumeMount {
            name: name.clone(),
            mount_path: format!("{HOST}/{path}"),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        self.volumes.push(Volume { name, ..volume });
    }
}

/// The Secrets that the build names, and which keys of them.
fn secrets(build: &ImageBuild) -> BTreeMap<String, Keys> {
    let spec = &build.spec;
    let mut secrets = BTreeMap::new();
    for secret in &spec.secrets {
        some(&mut secrets, &secret.secret_key_ref.name, &secret.secret_key_ref.key);
    }
    let push = spec.output.push.as_ref().and_then(|push| push.credentials.as_ref());
    for registry in spec.image_pull_secrets.iter().chain(push) {
        some(&mut secrets, &registry.name, ".dockerconfigjson");
    }
    let git = spec.source.git.as_ref().and_then(|git| git.credentials.as_ref());
    let http = spec.source.http.as_ref().and_then(|http| http.credentials.as_ref());
    for source in git.into_iter().chain(http) {
        for key in ["username", "password", "ssh-privatekey", "known_hosts"] {
            some(&mut secrets, &source.name, key);
        }
    }
    secrets
}

/// The ConfigMaps that the build names, and which keys of them.
fn config_maps(build: &ImageBuild) -> BTreeMap<String, Keys> {
    let mut maps = BTreeMap::new();
    if let Some(bundle) = &build.spec.ca_bundle {
        some(&mut maps, &bundle.name, &bundle.key);
    }
    if let Some(source) = &build.spec.source.config_map {
        maps.insert(source.name.clone(), None);
    }
    maps
}

fn some(objects: &mut BTreeMap<String, Keys>, name: &str, key: &str) {
    if let Some(keys) = objects.entry(name.to_owned()).or_insert_with(|| Some(BTreeSet::new())) {
        keys.insert(key.to_owned());
    }
}

fn items(keys: Keys) -> Option<Vec<KeyToPath>> {
    let item = |key: String| KeyToPath { path: key.clone(), key, mode: None };
    keys.map(|keys| keys.into_iter().map(item).collect())
}

#[cfg(test)]
mod tests {
    use cloister_crds::{
        ArchiveOutput, BuildSecret, BuildSource, ClaimSource, ConfigMapSource, KeyRef, SecretKind, SecretRef,
    };

    use super::*;
    use crate::fixture;

    #[test]
    fn only_what_the_build_names_is_mounted() {
        let (volumes, mounts) = volumes(&fixture::build(), &Attempt { number: 1, ..Attempt::default() });
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].config_map.as_ref().unwrap().name, "app-1");
        assert_eq!(mounts[0].mount_path, "/run/cloister/host/spec");
    }

    #[test]
    fn one_secret_is_one_volume_with_the_named_keys() {
        let mut build = fixture::build();
        let secret = |id: &str, key: &str| BuildSecret {
            id: id.into(),
            kind: SecretKind::Secret,
            secret_key_ref: KeyRef { name: "s.x".into(), key: key.into() },
        };
        build.spec.secrets = vec![secret("a", "one"), secret("b", "two"), secret("c", "one")];
        build.spec.image_pull_secrets = vec![SecretRef { name: "hub".into() }];
        let (volumes, mounts) = volumes(&build, &Attempt::default());
        let found: Vec<_> = volumes.iter().filter_map(|volume| volume.secret.clone()).collect();
        let keys = |index: usize| -> Vec<_> {
            found[index].items.iter().flatten().map(|item| item.key.clone()).collect()
        };
        assert_eq!(found[0].secret_name.as_deref(), Some("hub"));
        assert_eq!(keys(0), [".dockerconfigjson"]);
        assert_eq!(keys(1), ["one", "two"]);
        assert!(found.iter().all(|secret| secret.optional == Some(true)));
        assert_eq!(mounts[2].mount_path, "/run/cloister/host/secrets/s.x");
        assert_eq!(mounts[2].name, "secret-1");
    }

    #[test]
    fn a_claim_that_is_read_and_written_is_mounted_once_writable() {
        let mut build = fixture::build();
        let claim = ClaimSource { claim_name: "disk".into(), sub_path: None };
        build.spec.source = BuildSource { persistent_volume_claim: Some(claim), ..BuildSource::default() };
        let read_only = |build: &ImageBuild| {
            let (volumes, mounts) = volumes(build, &Attempt::default());
            assert_eq!(volumes.len(), 2);
            (volumes[1].persistent_volume_claim.clone().unwrap().read_only, mounts[1].read_only)
        };
        assert_eq!(read_only(&build), (Some(true), Some(true)));
        build.spec.output.archive =
            Some(ArchiveOutput { claim_name: "disk".into(), ..ArchiveOutput::default() });
        assert_eq!(read_only(&build), (None, None));
    }

    #[test]
    fn a_config_map_that_is_the_source_comes_whole() {
        let mut build = fixture::build();
        build.spec.ca_bundle = Some(KeyRef { name: "files".into(), key: "ca.pem".into() });
        let keys = |build: &ImageBuild| {
            let volumes = volumes(build, &Attempt::default()).0;
            volumes[1].config_map.clone().unwrap().items.map(|items| items.len())
        };
        assert_eq!(keys(&build), Some(1));
        let source = ConfigMapSource { name: "files".into(), ..ConfigMapSource::default() };
        build.spec.source = BuildSource { config_map: Some(source), ..BuildSource::default() };
        assert_eq!(keys(&build), None);
    }
}
