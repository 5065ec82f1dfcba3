//! The volumes that images declare, by their chains of layers.
//!
//! containerd labels an image's config with the snapshot it was unpacked to, but not when that snapshot was there
//! already; so every config that a manifest holds is looked at, each once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_image::Digest;
use serde::Deserialize;
use tonic::Status;

use super::{Containerd, DEADLINE, failed, request};
use crate::api::content::v1 as content;
use crate::error::{Error, Result};
use crate::snapshots::chain::chain_id;

/// Labels by which a manifest keeps its image's config: of a pull, and of an archive that was imported.
const HELD: [&str; 2] = ["containerd.io/gc.ref.content.config", "containerd.io/gc.ref.content.0"];
/// Most bytes of a config.
const MAX_BYTES: usize = 8 << 20;
/// Most volumes of one image, and most bytes of a path among them (`PATH_MAX`): both are kept in memory.
const MAX_VOLUMES: usize = 128;
const MAX_PATH: usize = 4096;
/// Most configs of one containerd namespace that are looked at.
const MAX_CONFIGS: usize = 4096;

/// The part of an image config (image-spec `config.md`) that is of use here.
#[derive(Default, Deserialize)]
struct Config {
    config: Option<RunConfig>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct RunConfig {
    #[serde(rename = "Volumes")]
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// What one config says.
#[derive(Debug, Default, Clone)]
struct Said {
    chain: Option<Digest>,
    volumes: Vec<String>,
}

/// What configs said, by their digests; these never change.
#[derive(Debug, Clone, Default)]
pub struct Configs(Arc<Mutex<HashMap<String, Said>>>);

impl Configs {
    /// The paths that images with this chain of layers declare as volumes.
    pub async fn volumes(
        &self,
        containerd: &Containerd,
        namespace: &str,
        chain: &Digest,
    ) -> Result<Vec<String>> {
        let digests = held(containerd, namespace).await?;
        self.forget_others(&digests);
        let mut volumes = BTreeSet::new();
        for digest in digests {
            let known = self.table().get(&digest).cloned();
            let said = match known {
                Some(said) => said,
                None => {
                    let Some(json) = read(containerd, namespace, &digest).await? else { continue };
                    let said = parse(&json);
                    self.table().insert(digest, said.clone());
                    said
                }
            };
            if said.chain == Some(*chain) {
                volumes.extend(said.volumes);
            }
        }
        Ok(volumes.into_iter().collect())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room when images of the past, or of other namespaces, fill the table.
    fn forget_others(&self, digests: &BTreeSet<String>) {
        let mut table = self.table();
        if table.len() > 2 * MAX_CONFIGS {
            table.retain(|digest, _| digests.contains(digest));
        }
    }
}

/// The digests of the configs that manifests hold.
async fn held(containerd: &Containerd, namespace: &str) -> Result<BTreeSet<String>> {
    let filters = HELD.map(|label| format!("labels.\"{label}\"")).to_vec();
    let list = request(namespace, content::ListContentRequest { filters })?;
    let fail = |status: Status| failed("list contents", &status);
    let mut stream = containerd.content().list(list).await.map_err(fail)?.into_inner();
    let mut digests = BTreeSet::new();
    while let Some(some) = stream.message().await.map_err(fail)? {
        let found = some.info.into_iter().flat_map(|mut info| HELD.map(|label| info.labels.remove(label)));
        digests.extend(found.flatten());
        if digests.len() > MAX_CONFIGS {
            tracing::warn!(
                most = MAX_CONFIGS,
                "too many images: the contents of some images' volumes may be missing"
            );
            digests = digests.into_iter().take(MAX_CONFIGS).collect();
            break;
        }
    }
    Ok(digests)
}

/// The content of a config, nothing if it is too large for one; `None` when it is not here.
async fn read(containerd: &Containerd, namespace: &str, digest: &str) -> Result<Option<Vec<u8>>> {
    let mut stream = match containerd.read(namespace, digest).await {
        Ok(stream) => stream,
        Err(Error::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let reading = async {
        let mut json = Vec::new();
        while let Some(piece) = stream.message().await? {
            if json.len() + piece.data.len() > MAX_BYTES {
                return Ok(Some(Vec::new()));
            }
            json.extend(piece.data);
        }
        Ok::<_, Status>(Some(json))
    };
    match tokio::time::timeout(DEADLINE, reading).await {
        Ok(Ok(json)) => Ok(json),
        // An image may be removed while its config is read.
        Ok(Err(status)) if status.code() == tonic::Code::NotFound => Ok(None),
        Ok(Err(status)) => Err(failed("read a config", &status)),
        Err(_) => {
            Err(Error::Containerd(format!("config {digest} did not arrive in {} s", DEADLINE.as_secs())))
        }
    }
}

/// Any content may carry the labels; what is no image config has no volumes.
fn parse(json: &[u8]) -> Said {
    let config: Config = serde_json::from_slice(json).unwrap_or_default();
    let layers: Option<Vec<Digest>> = config.rootfs.diff_ids.iter().map(|id| id.parse().ok()).collect();
    let chain =
        layers.unwrap_or_default().iter().fold(None, |below, layer| Some(chain_id(below.as_ref(), layer)));
    let volumes = config.config.and_then(|config| config.volumes).unwrap_or_default();
    let volumes = volumes.into_keys().filter(|path| path.len() <= MAX_PATH).take(MAX_VOLUMES);
    Said { chain, volumes: volumes.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_tells_its_chain_and_volumes() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let json = format!(
            r#"{{"config":{{"Volumes":{{"/data":{{}},"/log":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{a}","{b}"]}}}}"#
        );
        let said = parse(json.as_bytes());
        assert_eq!(said.chain, Some(chain_id(Some(&a), &b)));
        assert_eq!(said.volumes, ["/data", "/log"]);
    }

    #[test]
    fn volumes_are_bounded_in_number_and_length() {
        let names = (0..1000).map(|n| format!(r#""/{n}":{{}},"#)).collect::<String>();
        let json = format!(r#"{{"config":{{"Volumes":{{{names}"/{}":{{}}}}}}}}"#, "x".repeat(MAX_PATH));
        let said = parse(json.as_bytes());
        assert_eq!(said.volumes.len(), MAX_VOLUMES);
        assert!(said.volumes.iter().all(|path| path.len() <= MAX_PATH));
    }

    #[test]
    fn what_is_no_config_has_no_chain() {
        for text in
            ["", "[]", r#"{"layers":[]}"#, r#"{"rootfs":{"diff_ids":["sha256:x"]}}"#, r#"{"config":null}"#]
        {
            let said = parse(text.as_bytes());
            assert!(said.chain.is_none() && said.volumes.is_empty(), "{text}");
        }
    }
}
