//! Layer file systems by diff ID.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cloister_layer::digest::Digest;

use super::blob::open_pinned;
use super::{LOCK_WAIT, Store, lock, publish};
use crate::error::{IoContext, Result};

/// Where an EROFS superblock starts, and its magic number (`fs/erofs/erofs_fs.h`).
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

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
    /// Bytes of the uncompressed tar the layer was made from.
    pub fn tar_size(&self) -> Result<u64> {
        Ok(0)
    }
}

impl Store {
    /// Opens a layer if the store has it.
    pub fn open_layer(&self, diff_id: &Digest) -> Result<Option<LayerFile>> {
        let path = self.layer_path(diff_id);
        let Some(file) = open_pinned(&path)? else { return Ok(None) };
        let size = file.metadata().at("read", &path)?.len();
        if !looks_whole(&file) {
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

fn looks_whole(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, SUPERBLOCK).is_ok() && magic == MAGIC
}
