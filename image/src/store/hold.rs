//! Layers that something outside the store's names needs, such as a snapshot, kept on disk over restarts of its owner.
//!
//! A hold is the file `ROOT/holds/HEX/OWNER`. Its owner can make it again from its own state at any start, so nothing is
//! synced. A [`LayerFile`] keeps a layer only as long as its process lives; a hold keeps it until it is released.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

use cloister_layer::digest::Digest;

use super::prune::remove_unused;
use super::{LayerFile, Store};
use crate::error::{IoContext, Result};

/// How often a hold is tried again when the last other one is released at the same moment.
const ATTEMPTS: usize = 100;

impl Store {
    /// Keeps `layer` from being pruned until `owner` releases it. `owner` is a file name.
    pub fn hold(&self, layer: &LayerFile, owner: &str) -> Result<()> {
        self.hold_id(&layer.diff_id, owner)
    }

    /// As [`Store::hold`], for a layer that is about to be made.
    pub(super) fn hold_id(&self, diff_id: &Digest, owner: &str) -> Result<()> {
        let dir = self.hold_path(diff_id);
        let path = dir.join(owner);
        for attempt in 1.. {
            std::fs::create_dir_all(&dir).at("make", &dir)?;
            match File::create(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {}
                result => return result.map(drop).at("create", &path),
            }
        }
        Ok(())
    }

    /// Ends the hold of `owner` on a layer, if there is one. The layer stays until it is removed or pruned.
    pub fn release(&self, diff_id: &Digest, owner: &str) -> Result<()> {
        let dir = self.hold_path(diff_id);
        let path = dir.join(owner);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("remove", &path),
            _ => {}
        }
        match std::fs::remove_dir(&dir) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(error).at("remove", &dir)
            }
            _ => Ok(()),
        }
    }

    /// The layers `owner` holds.
    pub fn held_by(&self, owner: &str) -> Result<Vec<Digest>> {
        let root = self.hold_dir();
        let entries = match std::fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).at("list", &root),
        };
        let mut held = Vec::new();
        for entry in entries {
            let entry = entry.at("list", &root)?;
            let name = format!("sha256:{}", entry.file_name().to_string_lossy());
            if let Ok(diff_id) = name.parse::<Digest>()
                && entry.path().join(owner).exists()
            {
                held.push(diff_id);
            }
        }
        Ok(held)
    }

    /// Whether anyone holds the layer.
    pub(super) fn is_held(&self, diff_id: &Digest) -> bool {
        self.hold_path(diff_id).exists()
    }

    /// Removes one layer unless an image's name, a hold, a VM or an import needs it; `false` when it stays.
    pub fn remove_layer(&self, diff_id: &Digest) -> Result<bool> {
        // Under the lock no name appears; what is being imported right now is held by its importer.
        let names = self.lock_names()?;
        let named =
            names.records.iter().any(|record| record.layers.iter().any(|layer| layer.diff_id == *diff_id));
        if named {
            return Ok(false);
        }
        remove_unused(&self.layer_path(diff_id), || self.is_held(diff_id))
    }

    fn hold_path(&self, diff_id: &Digest) -> PathBuf {
        self.hold_dir().join(diff_id.hex())
    }
}
