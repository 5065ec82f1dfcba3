//! Freeing what nothing needs.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cloister_layer::digest::Digest;

use super::layer::layer_of;
use super::{ImageRecord, Store, lock};
use crate::error::{IoContext, Result};

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PruneReport {
    /// Names removed, oldest first.
    pub names: Vec<String>,
    /// Files removed.
    pub files: u64,
    /// Bytes freed on disk.
    pub freed: u64,
    /// Bytes the store still takes.
    pub remaining: u64,
}

/// What a store takes on disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Manifests, configs and compressed layers.
    pub blobs: u64,
    /// Layer file systems.
    pub layers: u64,
}

impl Usage {
    /// Both together.
    pub fn total(&self) -> u64 {
        self.blobs + self.layers
    }
}

/// One run of [`Store::prune`].
struct Sweep<'a> {
    store: &'a Store,
    /// Bytes the store takes now.
    total: u64,
    goal: Option<u64>,
    report: PruneReport,
}

impl Sweep<'_> {
    fn reached(&self) -> bool {
        self.goal.is_some_and(|goal| self.total <= goal)
    }

    /// Removes files no name needs, oldest first, until the goal is reached.
    fn remove_unneeded(&mut self, records: &[ImageRecord]) -> Result<()> {
        let mut needed = HashSet::new();
        for record in records {
            needed.extend(record.blobs().map(|digest| self.store.blob_path(&digest)));
            needed.extend(record.layers.iter().map(|layer| self.store.layer_path(&layer.diff_id)));
        }
        let mut files = self.store.files()?;
        files.retain(|file| !needed.contains(&file.path));
        files.sort_by_key(|file| file.modified);
        for file in files {
            if self.reached() {
                break;
            }
            let held = || file.layer.is_some_and(|diff_id| self.store.is_held(&diff_id));
            if remove_unused(&file.path, held)? {
                self.total = self.total.saturating_sub(file.bytes);
                self.report.freed += file.bytes;
                self.report.files += 1;
            }
        }
        Ok(())
    }
}

/// A file that could be removed.
struct Candidate {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
    /// For layers of this version: whose file system it is.
    layer: Option<Digest>,
}

impl Store {
    /// Frees disk, oldest first, until the store takes no more than `keep_size` bytes (`None`: as much as possible).
    ///
    /// Blobs and layers that no name needs go first. With `all`, names whose image no VM uses go as well, those not used for
    /// longest first. What a running VM, a snapshot, an export or an import in progress holds always stays.
    pub fn prune(&self, all: bool, keep_size: Option<u64>) -> Result<PruneReport> {
        // Under the lock no name appears; what is being imported right now is held by its importer.
        let mut names = self.lock_names()?;
        let mut sweep = Sweep {
            store: self,
            total: self.usage()?.total(),
            goal: keep_size,
            report: PruneReport::default(),
        };
        sweep.remove_unneeded(&names.records)?;
        if all {
            let mut by_age: Vec<(SystemTime, String)> =
                names.records.iter().map(|record| (self.last_use(record), record.name.clone())).collect();
            by_age.sort();
            for (_, name) in by_age {
                if sweep.reached() {
                    break;
                }
                let Some(at) = names.records.iter().position(|record| record.name == name) else { continue };
                if self.in_use(&names.records[at])? {
                    continue;
                }
                // The name goes first: a name never points at something missing, whenever we are interrupted.
                names.records.remove(at);
                names.save()?;
                sweep.report.names.push(name);
                sweep.remove_unneeded(&names.records)?;
            }
        }
        Ok(PruneReport { remaining: sweep.total, ..sweep.report })
    }

    /// Bytes on disk.
    pub fn usage(&self) -> Result<Usage> {
        let sum = |dir: &Path| Ok::<u64, crate::error::Error>(list(dir)?.iter().map(|file| file.bytes).sum());
        let mut usage = Usage { blobs: sum(&self.blob_dir())?, layers: 0 };
        for dir in self.layer_dirs()? {
            usage.layers += sum(&dir)?;
        }
        Ok(usage)
    }

    fn layer_dirs(&self) -> Result<Vec<PathBuf>> {
        let layers = self.root.join("layers");
        std::fs::read_dir(&layers)
            .at("list", &layers)?
            .map(|entry| Ok(entry.at("list", &layers)?.path()))
            .collect()
    }

    fn files(&self) -> Result<Vec<Candidate>> {
        let mut files = list(&self.blob_dir())?;
        for dir in self.layer_dirs()? {
            let current = dir == self.layer_dir();
            files.extend(list(&dir)?.into_iter().map(|file| {
                let layer = if current { layer_of(&file.path) } else { None };
                Candidate { layer, ..file }
            }));
        }
        Ok(files)
    }

    /// A pinned image's manifest is locked.
    fn in_use(&self, record: &ImageRecord) -> Result<bool> {
        let path = self.blob_path(&record.manifest);
        match File::open(&path) {
            Ok(file) => Ok(!lock::try_exclusive(&file, &path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).at("open", &path),
        }
    }

    fn last_use(&self, record: &ImageRecord) -> SystemTime {
        std::fs::metadata(self.blob_path(&record.manifest))
            .and_then(|meta| meta.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH)
            .max(record.imported.into())
    }
}

fn list(dir: &Path) -> Result<Vec<Candidate>> {
    use std::os::unix::fs::MetadataExt;
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        match entry.metadata() {
            Ok(meta) if meta.is_file() => out.push(Candidate {
                path: entry.path(),
                bytes: meta.blocks() * 512,
                modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                layer: None,
            }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("read", &entry.path()),
        }
    }
    Ok(out)
}

/// Removes a file that nobody has locked; `false` when someone has. `held` is asked when nobody can lock it any more: who
/// wants to keep a layer for longer locks it first.
pub(super) fn remove_unused(path: &Path, held: impl FnOnce() -> bool) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at("open", path),
    };
    if !lock::try_exclusive(&file, path)? || held() {
        return Ok(false);
    }
    std::fs::remove_file(path).at("remove", path)?;
    Ok(true)
}
