//! What the store knows about an image without opening its blobs.

use std::collections::BTreeMap;

use cloister_layer::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::platform::Platform;
use crate::reference::Reference;

/// One name in the store and the image it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Canonical reference.
    pub name: String,
    /// Digest of the image manifest (never of an index).
    pub manifest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// Digest of the config; docker calls it the image id.
    pub config: Digest,
    /// Digest of the index the manifest was chosen from, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// Platform as the config says.
    pub platform: Platform,
    /// When the image was made, as its config says; builders may set any date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<jiff::Timestamp>,
    /// When it came into this store.
    pub imported: jiff::Timestamp,
    /// Bytes of manifest, config and layers as a registry keeps them.
    pub compressed_size: u64,
    /// Bytes of the layer file systems. Layers shared with other images count in each.
    pub unpacked_size: u64,
    /// Lowest layer first.
    pub layers: Vec<LayerRecord>,
    /// Free facts about how the image was made; the importer and `cloister build` write it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build: BTreeMap<String, String>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the uncompressed tar; names the layer's file system.
    pub diff_id: Digest,
    /// Digest of the layer blob, equal to `diff_id` for an uncompressed one.
    pub blob: Digest,
    /// Bytes of the layer blob.
    pub blob_size: u64,
    /// Media type of the layer blob.
    pub media_type: String,
    /// Bytes of the layer's file system.
    pub size: u64,
}

impl ImageRecord {
    /// The name as people type it; the canonical one if that cannot be shortened.
    pub fn familiar_name(&self) -> String {
        self.name.parse::<Reference>().map_or_else(|_| self.name.clone(), |reference| reference.familiar())
    }

    /// Every blob the image is made of: manifest, config, layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        [self.manifest, self.config].into_iter().chain(self.layers.iter().map(|layer| layer.blob))
    }
}
