//! Images that containerd has, whoever brought them, as configuration and layers.

use cloister_image::{Digest, Platform};
use serde::Deserialize;

use crate::containerd::scope::Scope;
use crate::error::{Error, Result};

/// Bytes of an index, manifest or configuration.
const MAX: u64 = 4 << 20;
/// Most layers of an image.
const LAYERS: usize = 1024;

/// An image of this node.
#[derive(Debug)]
pub struct Local {
    /// What its name stands for: an index or manifest.
    pub top: Digest,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
}

/// One of its layers.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// What it is, whoever compressed it.
    pub diff_id: Digest,
    /// Its blob; containerd may have left it at its registry.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

impl Local {
    /// Bytes of its layers as they were sent.
    pub fn sent(&self) -> u64 {
        self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size))
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Entry>,
    config: Option<Entry>,
    #[serde(default)]
    layers: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Digest,
    size: u64,
    platform: Option<Of>,
}

#[derive(Deserialize)]
struct Of {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Config {
    rootfs: Layers,
}

#[derive(Deserialize)]
struct Layers {
    diff_ids: Vec<Digest>,
}

/// The image of this canonical name; `None` when it is not here, or not for this platform.
pub async fn find(scope: &Scope, name: &str, platform: &Platform) -> Result<Option<Local>> {
    let Some(named) = scope.image(name).await? else { return Ok(None) };
    let bad = |why: &dyn std::fmt::Display| Error::Invalid(format!("image {name}: {why}"));
    let top: Digest = named.digest.parse().map_err(|error| bad(&error))?;
    let Some(mut content) = scope.document(&top, MAX).await? else { return Ok(None) };
    let mut document: Document = serde_json::from_slice(&content).map_err(|error| bad(&error))?;
    if document.config.is_none() {
        let fits = |entry: &&Entry| {
            let of = entry.platform.as_ref();
            of.is_some_and(|of| of.os == platform.os && of.architecture == platform.architecture)
        };
        let Some(manifest) = document.manifests.iter().find(fits) else { return Ok(None) };
        let Some(inner) = scope.document(&manifest.digest, MAX).await? else { return Ok(None) };
        content = inner;
        document = serde_json::from_slice(&content).map_err(|error| bad(&error))?;
    }
    let Some(config) = document.config else { return Ok(None) };
    let Some(config) = scope.document(&config.digest, MAX).await? else { return Ok(None) };
    let ids: Config = serde_json::from_slice(&config).map_err(|error| bad(&error))?;
    let ids = ids.rootfs.diff_ids;
    if ids.len() > LAYERS || ids.len() != document.layers.len() {
        return Err(bad(&format!(
            "its {} layers are not those of its configuration, or too many",
            ids.len()
        )));
    }
    let layer = |(diff_id, entry): (Digest, &Entry)| Layer { diff_id, blob: entry.digest, size: entry.size };
    let layers = ids.into_iter().zip(&document.layers).map(layer).collect();
    Ok(Some(Local { top, config, layers }))
}
