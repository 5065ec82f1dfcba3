//! Layer file systems by diff ID.

use std::fs::File;
use std::path::{Path, PathBuf};

use cloister_layer::digest::Digest;
use cloister_layer::erofs::TarRange;

use super::blob::open_pinned;
use super::{LOCK_WAIT, Store, lock, publish};
use crate::error::{Error, IoContext, Result};

/// One layer's file system, open and locked against removal for as long as this value lives.
///
/// The lock belongs to the open file: a process that inherits the descriptor keeps it too.
#[derive(Debug)]
pub struct LayerFile {
    /// Digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// Where it is; stable while this value lives.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// Bytes.
    pub size: u64,
}

impl LayerFile {
    /// Where in the file the uncompressed tar is that the layer was made from, byte for byte.
    pub fn tar(&self) -> Result<TarRange> {
        cloister_layer::erofs::tar_range(&self.file).at("read", &self.path)?.ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            why: "the file does not say where its tar is; remove it and import the image again".to_owned(),
        })
    }
}

impl Store {
    /// Opens a layer if the store has it.
    pub fn open_layer(&self, diff_id: &Digest) -> Result<Option<LayerFile>> {
        let path = self.layer_path(diff_id);
        let Some(file) = open_pinned(&path)? else { return Ok(None) };
        let size = file.metadata().at("read", &path)?.len();
        let made_from = cloister_layer::erofs::tar_range(&file).at("read", &path)?.map(|tar| tar.diff_id);
        if made_from != Some(*diff_id) {
            // Never written by us: a damaged disk. As good as absent, and replaced by the next import.
            tracing::warn!(path = %path.display(), "not a layer file system; ignored");
            return Ok(None);
        }
        Ok(Some(LayerFile { diff_id: *diff_id, path, file, size }))
    }

    /// Makes a finished, checked layer visible.
    pub(crate) fn publish_layer(&self, file: File, from: &Path, diff_id: &Digest) -> Result<LayerFile> {
        let path = self.layer_path(diff_id);
        // Locked before it is visible, so that no prune can take it before a name is written.
        lock::shared(&file, "layer", from, LOCK_WAIT)?;
        publish(&file, from, &path)?;
        let size = file.metadata().at("read", &path)?.len();
        Ok(LayerFile { diff_id: *diff_id, path, file, size })
    }
}
