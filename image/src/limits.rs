//! What an image may cost.

use crate::error::{Error, Result};

/// Bounds on what an image may cost. The defaults let all images we know of pass.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a manifest or an index; registries accept no larger ones (distribution-spec, "Pushing Manifests").
    pub manifest: u64,
    /// Bytes of a config.
    pub config: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Entries of one index.
    pub index_entries: usize,
    /// Bytes of all layer blobs of one image together, as descriptors state them.
    pub total_bytes: u64,
    /// Bytes of an image archive after its own decompression.
    pub archive_bytes: u64,
    /// Entries in an image archive.
    pub archive_entries: usize,
    /// Bounds on each layer.
    pub layer: cloister_layer::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest: 4 << 20,
            config: 8 << 20,
            layers: 128,
            index_entries: 1024,
            total_bytes: 128 << 30,
            archive_bytes: 256 << 30,
            archive_entries: 100_000,
            layer: cloister_layer::Limits::default(),
        }
    }
}

impl Limits {
    /// Bounds the entries of an index, or of what lists images as one does.
    pub(crate) fn index(&self, subject: impl std::fmt::Display, entries: usize) -> Result<()> {
        if entries <= self.index_entries {
            return Ok(());
        }
        let (got, limit) = (entries as u64, self.index_entries as u64);
        Err(Error::Limit { subject: subject.to_string(), got, limit, unit: "entries" })
    }
}
