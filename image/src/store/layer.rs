//! Layer file systems by diff ID.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cloister_layer::digest::Digest;
use cloister_layer::erofs::TarRange;
use cloister_layer::{Converted, Expected, Limits};

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

    /// The layers in the store, by name only: open one to be sure of it.
    pub fn layers(&self) -> Result<Vec<Digest>> {
        let dir = self.layer_dir();
        let mut layers = Vec::new();
        for entry in std::fs::read_dir(&dir).at("list", &dir)? {
            layers.extend(layer_of(&entry.at("list", &dir)?.path()));
        }
        Ok(layers)
    }

    /// Converts one layer blob whose diff ID is not known beforehand, and holds the layer for `owner` from the moment it is
    /// visible. The blob itself is not kept.
    ///
    /// Two callers that convert one blob at the same time get the same file; who wants the work done once has a lock of
    /// its own around this.
    ///
    /// # Errors
    /// When the blob is not what `expected` says, breaks a limit or is no layer; nothing is published then.
    pub fn add_layer(
        &self,
        blob: impl Read + Send,
        name: &str,
        expected: &Expected,
        limits: &Limits,
        owner: &str,
    ) -> Result<(LayerFile, Converted)> {
        let temp = self.temp()?;
        let (out, out_path) = temp.file("layer")?;
        let converted = cloister_layer::convert(blob, expected, &out, limits, &|_| {})
            .map_err(|source| Error::Layer { layer: name.to_owned(), source })?;
        let _lock = self.layer_lock(&converted.diff_id)?;
        self.hold_id(&converted.diff_id, owner)?;
        let layer = match self.open_layer(&converted.diff_id)? {
            Some(layer) => layer,
            None => self.publish_layer(out, &out_path, &converted.diff_id)?,
        };
        Ok((layer, converted))
    }
}

/// The diff ID in a layer file's name.
pub(super) fn layer_of(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_suffix(".erofs")?;
    format!("sha256:{hex}").parse().ok()
}
