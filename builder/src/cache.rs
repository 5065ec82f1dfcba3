//! Disks with buildkitd's state that outlive their machine.
//!
//! ```text
//! FOLDER/KEY/N.ext4    a state that was unmounted
//! FOLDER/KEY/N.busy    one that a machine has mounted; its file is locked
//! ```
//!
//! A build takes the lowest free disk of its key, and makes one more when all are in use: nobody waits. The file system
//! has no journal, so a disk gets its good name back only once it was unmounted, and a busy one that nobody locks is what
//! a killed build left: it is removed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cloister_view::scratch;
use rustix::fs::{FlockOperation, flock};

use super::disks::guard;
use super::error::{Error, Result};

/// Disks of one key that are kept.
const KEPT: u32 = 4;
/// Disks of one key in use at once.
const MOST: u32 = 64;
/// Bytes that a disk is a multiple of.
const BLOCK: u64 = 4096;
/// Bytes of a key: two names of Kubernetes and what is between them.
const KEY: usize = 127;

/// The cache disks below one folder.
#[derive(Debug, Clone)]
pub struct Caches {
    folder: PathBuf,
    bytes: u64,
}

/// A cache disk in use. When it is dropped without [`CacheDisk::keep`] its content is gone.
#[derive(Debug)]
pub struct CacheDisk {
    file: File,
    folder: PathBuf,
    number: u32,
    bytes: u64,
    warm: bool,
    kept: bool,
}

impl Caches {
    /// Disks of `bytes` each, rounded down to 4 KiB, below `folder`, which need not exist yet. The files are sparse.
    pub fn new(folder: PathBuf, bytes: u64) -> Self {
        Self { folder, bytes: bytes / BLOCK * BLOCK }
    }

    /// A disk of this key: with what an earlier build left, or empty.
    ///
    /// # Errors
    /// When `key` is no name, or the disk can't be made.
    pub fn take(&self, key: &str) -> Result<CacheDisk> {
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if key.is_empty() || key.len() > KEY || key.starts_with('.') || !key.chars().all(name) {
            return Err(Error::CacheKey(key.to_owned()));
        }
        let folder = self.folder.join(key);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(failed("make", &folder))?;
        // Held for the moments in which disks change their names.
        let _guard = guard(&folder)?;
        for number in 0..MOST {
            let disk = |file, warm| CacheDisk {
                file,
                folder: folder.clone(),
                number,
                bytes: self.bytes,
                warm,
                kept: false,
            };
            let (free, busy) = (free(&folder, number), busy(&folder, number));
            match open(&busy, false) {
                Ok(file) if is_locked(&file).map_err(failed("lock", &busy))? => continue,
                Ok(_) => fs::remove_file(&busy).map_err(failed("remove", &busy))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &busy)(error)),
            }
            match open(&free, false) {
                // A cap that was changed means another disk.
                Ok(file) if file.metadata().is_ok_and(|meta| meta.len() == self.bytes) => {
                    is_locked(&file).map_err(failed("lock", &free))?;
                    fs::rename(&free, &busy).map_err(failed("take", &free))?;
                    return Ok(disk(file, true));
                }
                Ok(_) => fs::remove_file(&free).map_err(failed("remove", &free))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &free)(error)),
            }
            let file = open(&busy, true).map_err(failed("make", &busy))?;
            is_locked(&file).map_err(failed("lock", &busy))?;
            let disk = disk(file, false);
            scratch::create(&disk.file, self.bytes)
                .map_err(|error| failed("make", &busy)(io::Error::other(error)))?;
            return Ok(disk);
        }
        let why = format!("{MOST} builds use the key {key}");
        Err(failed("take a disk of", &folder)(io::Error::other(why)))
    }
}

impl CacheDisk {
    /// The disk's file, opened for reading and writing.
    ///
    /// # Errors
    /// When it can't be duplicated.
    pub fn file(&self) -> Result<OwnedFd> {
        let file = self.file.try_clone().map(OwnedFd::from);
        file.map_err(failed("use", &busy(&self.folder, self.number)))
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an earlier build has left something on it.
    pub fn is_warm(&self) -> bool {
        self.warm
    }

    /// Makes it available to later builds. It must be unmounted.
    ///
    /// # Errors
    /// When it can't be written out or renamed.
    pub fn keep(mut self) -> Result<()> {
        let (free, busy) = (free(&self.folder, self.number), busy(&self.folder, self.number));
        if self.number < KEPT {
            self.file.sync_data().map_err(failed("write", &busy))?;
            fs::rename(&busy, &free).map_err(failed("keep", &busy))?;
            self.kept = true;
        }
        Ok(())
    }
}

impl Drop for CacheDisk {
    fn drop(&mut self) {
        if !self.kept {
            let path = busy(&self.folder, self.number);
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!(%error, path = %path.display(), "cannot remove a cache disk");
            }
        }
    }
}

fn free(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number}.ext4"))
}

fn busy(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number}.busy"))
}

pub(super) fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Whether somebody else holds the lock; otherwise it is ours now.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::Cache { what, path, cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const BYTES: u64 = 8 << 20;
    /// Where nothing of an empty file system is.
    const PLACE: u64 = BYTES - 4096;

    fn mark(disk: &CacheDisk) -> u8 {
        let mut byte = [0];
        disk.file.read_exact_at(&mut byte, PLACE).unwrap();
        byte[0]
    }

    #[test]
    fn a_disk_comes_back_with_what_was_left_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().join("cache"), BYTES);
        let disk = caches.take("team-a").unwrap();
        assert!(!disk.is_warm());
        disk.file.write_all_at(&[7], PLACE).unwrap();
        disk.keep().unwrap();
        assert!(!caches.take("team-b").unwrap().is_warm());
        let disk = caches.take("team-a").unwrap();
        assert_eq!((disk.is_warm(), mark(&disk)), (true, 7));
    }

    #[test]
    fn builds_of_one_key_never_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES);
        let disks: Vec<_> = (0..6).map(|_| caches.take("k").unwrap()).collect();
        assert_eq!(disks.iter().map(|disk| disk.number).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        disks.into_iter().for_each(|disk| disk.keep().unwrap());
        let mut left: Vec<_> =
            fs::read_dir(folder.path().join("k")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".lock", "0.ext4", "1.ext4", "2.ext4", "3.ext4"]);
    }

    #[test]
    fn what_was_not_unmounted_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES);
        let mut disk = caches.take("k").unwrap();
        disk.file.write_all_at(&[7], PLACE).unwrap();
        disk.kept = true; // as a killed process leaves it
        drop(disk);
        assert!(folder.path().join("k/0.busy").exists());
        let disk = caches.take("k").unwrap();
        assert_eq!((disk.number, disk.is_warm(), mark(&disk)), (0, false, 0));
        drop(disk);
        assert!(!folder.path().join("k/0.busy").exists());
    }

    #[test]
    fn another_cap_means_another_disk() {
        let folder = tempfile::tempdir().unwrap();
        Caches::new(folder.path().to_owned(), BYTES).take("k").unwrap().keep().unwrap();
        let disk = Caches::new(folder.path().to_owned(), 2 * BYTES).take("k").unwrap();
        assert_eq!((disk.is_warm(), disk.file.metadata().unwrap().len()), (false, 2 * BYTES));
    }

    #[test]
    fn a_size_between_two_blocks_is_the_same_disk_again() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES + 1000);
        caches.take("k").unwrap().keep().unwrap();
        assert!(caches.take("k").unwrap().is_warm());
    }

    #[test]
    fn keys_never_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES);
        for key in ["", ".", "..", "../x", "a/b", "a b", "é"] {
            assert!(matches!(caches.take(key), Err(Error::CacheKey(_))), "{key:?}");
        }
    }
}
