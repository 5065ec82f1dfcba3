//! Layers mounted on the host, for runtimes that share its kernel.
//!
//! ```text
//! ROOT/mounts/N/layer    diff ID of the layer mounted on ROOT/mounts/N/fs
//! ```
//!
//! Each layer is mounted once, however many containers use it. The folders have short names because containerd puts
//! them all on one line of at most a page. Who uses a layer is in the snapshots' records: a mount none of them needs goes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloister_image::{Digest, LayerFile};

use super::erofs;
use crate::error::{IoContext, Result};
use crate::snapshots::disk::{make_private_dir, remove_tree};

/// The mounted layers.
#[derive(Debug)]
pub struct HostMounts {
    dir: PathBuf,
    ids: Mutex<HashMap<Digest, u32>>,
}

impl HostMounts {
    /// Finds the mounts of the daemon's last run.
    pub fn open(root: &Path) -> Result<Self> {
        let dir = root.join("mounts");
        make_private_dir(&dir)?;
        let mut ids = HashMap::new();
        for entry in std::fs::read_dir(&dir).at("list", &dir)? {
            let path = entry.at("list", &dir)?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let layer = std::fs::read_to_string(path.join("layer")).ok().and_then(|text| text.parse().ok());
            match (id, layer) {
                (Some(id), Some(layer)) if ids.insert(layer, id).is_none() => {}
                _ => take_down(&path)?,
            }
        }
        Ok(Self { dir, ids: Mutex::new(ids) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, u32>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts the layers that are not mounted yet; returns where they are, in the order given.
    pub fn ensure(&self, layers: &[LayerFile]) -> Result<Vec<PathBuf>> {
        let mut ids = self.lock();
        let mut used: HashSet<u32> = ids.values().copied().collect();
        let mut paths = Vec::with_capacity(layers.len());
        for layer in layers {
            let id = match ids.get(&layer.diff_id) {
                Some(id) => *id,
                None => {
                    let id = (0..).find(|id| !used.contains(id)).unwrap_or(u32::MAX);
                    let dir = self.dir.join(id.to_string());
                    make_private_dir(&dir.join("fs"))?;
                    let note = dir.join("layer");
                    std::fs::write(&note, layer.diff_id.to_string()).at("write", &note)?;
                    ids.insert(layer.diff_id, id);
                    used.insert(id);
                    id
                }
            };
            let path = self.dir.join(id.to_string()).join("fs");
            if !erofs::is_mounted(&path) {
                make_private_dir(&path)?;
                erofs::mount(&layer.path, &path)?;
            }
            paths.push(path);
        }
        Ok(paths)
    }

    /// Unmounts what no snapshot needs. `needed` is asked under the lock, so that none is being added meanwhile.
    pub fn cleanup(&self, needed: impl FnOnce() -> Result<HashSet<Digest>>) -> Result<()> {
        let mut ids = self.lock();
        let needed = needed()?;
        let gone: Vec<(Digest, u32)> = ids
            .iter()
            .filter(|(layer, _)| !needed.contains(*layer))
            .map(|(layer, id)| (*layer, *id))
            .collect();
        for (layer, id) in gone {
            take_down(&self.dir.join(id.to_string()))?;
            ids.remove(&layer);
        }
        Ok(())
    }
}

fn take_down(dir: &Path) -> Result<()> {
    // Once for each time it was mounted: a daemon killed at the wrong moment may have done it twice.
    let fs = dir.join("fs");
    while erofs::is_mounted(&fs) {
        erofs::unmount(&fs)?;
    }
    remove_tree(dir)
}
