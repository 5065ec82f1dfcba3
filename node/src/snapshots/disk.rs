//! Snapshots on disk.
//!
//! ```text
//! ROOT/snapshots/N/meta.json     the record; a folder without one is no snapshot
//! ROOT/snapshots/N/layers.json   for the shim: the image store and the layers, lowest first
//! ROOT/snapshots/N/accounts/     what the host may see of a microVM's image
//! ROOT/snapshots/N/fs, work      the writable part of an overlay, for runtimes that share the host's kernel
//! ROOT/snapshots/N/scratch       the disk of what a microVM's container writes, named here by its shim
//! ROOT/snapshots/new-N           being made
//! ROOT/snapshots/gone-N          being removed
//! ```
//!
//! Everything appears, changes and vanishes by rename, and the folder is synced before a caller is answered.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cloister_image::Digest;
use serde::Serialize;

use super::record::Record;
use crate::error::{Error, IoContext, Result};

/// The folder of all snapshots.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
    store: PathBuf,
}

/// What the shim reads.
#[derive(Serialize)]
struct Layers<'a> {
    store: &'a Path,
    layers: &'a [Digest],
}

impl Disk {
    /// Opens the folder below `root`, making it if needed.
    pub fn open(root: &Path, store: &Path) -> Result<Self> {
        let dir = root.join("snapshots");
        make_private_dir(&dir)?;
        Ok(Self { dir, store: store.to_owned() })
    }

    /// The folder of snapshot `id`.
    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// The snapshot whose folder is `path`.
    pub fn id_of(&self, path: &Path) -> Option<u64> {
        if path.parent()? != self.dir {
            return None;
        }
        path.file_name()?.to_str()?.parse().ok()
    }

    /// Reads every snapshot, after removing what was half made or half removed; also the first id never used.
    pub fn load(&self) -> Result<(Vec<(u64, Record)>, u64)> {
        let mut found = Vec::new();
        let mut next = 1;
        for entry in std::fs::read_dir(&self.dir).at("list", &self.dir)? {
            let entry = entry.at("list", &self.dir)?;
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(id) = name.parse::<u64>() {
                next = next.max(id + 1);
                match read_record(&path.join("meta.json")) {
                    Ok(record) => found.push((id, record)),
                    Err(error) => tracing::error!(%error, "not a snapshot; left alone"),
                }
            } else if name.starts_with("new-") || name.starts_with("gone-") {
                remove_tree(&path)?;
            }
        }
        Ok((found, next))
    }

    /// Makes a snapshot durable and visible. `layers` is for the shim; lowest first.
    pub fn publish(&self, id: u64, record: &Record, layers: Option<&[Digest]>) -> Result<()> {
        let new = self.dir.join(format!("new-{id}"));
        remove_tree(&new)?;
        make_private_dir(&new)?;
        if let Some(layers) = layers {
            write_json(&new.join("layers.json"), &Layers { store: &self.store, layers })?;
        }
        write_json(&new.join("meta.json"), record)?;
        sync_dir(&new)?;
        self.rename(&new, &self.path(id))
    }

    /// Replaces the record of a snapshot.
    pub fn rewrite(&self, id: u64, record: &Record) -> Result<()> {
        let dir = self.path(id);
        let new = dir.join("meta.json.new");
        write_json(&new, record)?;
        let path = dir.join("meta.json");
        std::fs::rename(&new, &path).at("publish", &path)?;
        sync_dir(&dir)
    }

    /// Makes a snapshot invisible; [`Disk::clean`] removes what is left of it.
    pub fn hide(&self, id: u64) -> Result<()> {
        self.rename(&self.path(id), &self.dir.join(format!("gone-{id}")))
    }

    /// Removes what is left of hidden snapshots.
    pub fn clean(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir).at("list", &self.dir)? {
            let entry = entry.at("list", &self.dir)?;
            if entry.file_name().to_string_lossy().starts_with("gone-") {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).at("publish", to)?;
        sync_dir(&self.dir)
    }
}

/// Makes a folder, and those above it, that only the daemon's user can enter.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).at("make", dir)
}

/// Removes a folder and everything below it, if it is there. Follows no symlink.
pub fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

fn read_record(path: &Path) -> Result<Record> {
    let text = std::fs::read(path).at("read", path)?;
    serde_json::from_slice(&text).map_err(|error| Error::Io {
        what: "read",
        path: path.to_owned(),
        source: error.into(),
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(std::io::Error::from).at("write", path)?;
    let mut file = File::create(path).at("create", path)?;
    file.write_all(&text).and_then(|()| file.sync_all()).at("write", path)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).at("write to disk", dir)
}
