//! The cache disks of a machine, to list and to remove.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::cache::{failed, is_locked, open};
use super::error::Result;

/// A disk with buildkitd's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Whose builds share it.
    pub key: String,
    /// Most bytes it may take.
    pub bytes: u64,
    /// Bytes it takes.
    pub used: u64,
    /// When it was last written.
    pub written: SystemTime,
    /// Whether a build uses it.
    pub busy: bool,
    path: PathBuf,
}

impl Disk {
    /// All disks below the folder of all keys, by key.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        // A build that takes a disk must not meet our lock of it.
        let _guard = match folder.try_exists() {
            Ok(true) => guard(folder)?,
            Ok(false) => return Ok(Vec::new()),
            Err(error) => return Err(failed("look at", folder)(error)),
        };
        Self::guarded(folder)
    }

    /// The same for who holds the guard.
    pub(super) fn guarded(folder: &Path) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for key in entries(folder)? {
            let Some(name) = key.file_name().and_then(|name| name.to_str()).filter(|_| key.is_dir()) else {
                continue;
            };
            for path in entries(&key)? {
                if path.extension().is_none_or(|extension| extension != "ext4" && extension != "busy") {
                    continue;
                }
                match inspect(name, &path) {
                    Ok(disk) => all.push(disk),
                    // A build has just thrown its disk away, or kept it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("look at", &path)(error)),
                }
            }
        }
        all.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(all)
    }

    /// Removes it; `false` when a build uses it, or it is not there any more.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(&self) -> Result<bool> {
        let _guard = guard(self.path.parent().and_then(Path::parent).unwrap_or(&self.path))?;
        self.discard()
    }

    /// The same for who holds the guard.
    pub(super) fn discard(&self) -> Result<bool> {
        let removed = match open(&self.path, false) {
            Ok(file) if is_locked(&file).map_err(failed("lock", &self.path))? => false,
            Ok(_) => {
                fs::remove_file(&self.path).map_err(failed("remove", &self.path))?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("open", &self.path)(error)),
        };
        // Of a key without disks nothing stays; with others this fails.
        let _ = self.path.parent().map(fs::remove_dir);
        Ok(removed)
    }

    /// Bytes it can come to take: what a build uses grows up to its size.
    pub(super) fn cost(&self) -> u64 {
        if self.busy { self.bytes.max(self.used) } else { self.used }
    }

    /// Whether it is what a killed build left.
    pub(super) fn is_leftover(&self) -> bool {
        !self.busy && self.path.extension().is_some_and(|extension| extension == "busy")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Holds the names of all disks below a folder, for the moments in which they change.
pub(super) fn guard(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let lock = open(&path, true).map_err(failed("open", &path))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed("lock", &path)(errno.into()))?;
    Ok(lock)
}

fn inspect(key: &str, path: &Path) -> io::Result<Disk> {
    let file = open(path, false)?;
    let meta = file.metadata()?;
    let busy = is_locked(&file)?;
    let (bytes, used, written) = (meta.len(), meta.blocks() * 512, meta.modified()?);
    Ok(Disk { key: key.to_owned(), bytes, used, written, busy, path: path.to_owned() })
}

/// What is in a folder; nothing when there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let paths = read.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    paths.map_err(failed("list", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bounds, Caches};

    #[test]
    fn disks_are_listed_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Disk::all(&folder.path().join("none")).unwrap().is_empty());
        let caches = Caches::new(folder.path().to_owned(), 8 << 20, Bounds::default());
        caches.take("a").unwrap().keep().unwrap();
        let used = caches.take("b").unwrap();
        let all = Disk::all(folder.path()).unwrap();
        let seen: Vec<_> = all.iter().map(|disk| (disk.key.as_str(), disk.busy, disk.bytes)).collect();
        assert_eq!(seen, [("a", false, 8 << 20), ("b", true, 8 << 20)]);
        assert!(all.iter().all(|disk| disk.used > 0 && disk.used < disk.bytes));
        assert_eq!(all.iter().map(|disk| disk.remove().unwrap()).collect::<Vec<_>>(), [true, false]);
        assert!(!all[0].remove().unwrap());
        used.keep().unwrap();
        assert_eq!(Disk::all(folder.path()).unwrap().len(), 1);
    }
}
