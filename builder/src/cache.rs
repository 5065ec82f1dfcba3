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

use super::bounds::Bounds;
use super::disks::{Disk, guard};
use super::error::{Error, Result};

/// Disks of one key that are kept.
const KEPT: u32 = 4;
/// Bytes that a disk is a multiple of.
const BLOCK: u64 = 4096;
/// Bytes of a key: two names of Kubernetes and what is between them.
const KEY: usize = 127;

/// The cache disks below one folder.
#[derive(Debug, Clone)]
pub struct Caches {
    folder: PathBuf,
    bytes: u64,
    bounds: Bounds,
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
    /// Disks of `bytes` each, rounded down to 4 KiB, below `folder`, which need not exist yet; all disks there stay within
    /// `bounds`. The files are sparse.
    pub fn new(folder: PathBuf, bytes: u64, bounds: Bounds) -> Self {
        Self { folder, bytes: bytes / BLOCK * BLOCK, bounds }
    }

    /// A disk of this key: with what an earlier build left, or empty. Others that nobody uses make room, the least
    /// recently used first.
    ///
    /// # Errors
    /// When `key` is no name, the disk does not fit the bounds, or it can't be made.
    pub fn take(&self, key: &str) -> Result<CacheDisk> {
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if key.is_empty() || key.len() > KEY || key.starts_with('.') || !key.chars().all(name) {
            return Err(Error::CacheKey(key.to_owned()));
        }
        let folder = self.folder.join(key);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(failed("make", &self.folder))?;
        let _guard = guard(&self.folder)?;
        let (left, mut disks): (Vec<_>, Vec<_>) =
            Disk::guarded(&self.folder)?.into_iter().partition(Disk::is_leftover);
        for disk in left {
            disk.discard()?;
        }
        let used = |number: &u32| {
            let busy = busy(&folder, *number);
            disks.iter().any(|disk| disk.busy && disk.path() == busy)
        };
        let number = (0..).find(|number| !used(number)).unwrap_or_default();
        let (free, busy) = (free(&folder, number), busy(&folder, number));
        let there = disks.iter().position(|disk| disk.path() == free).map(|at| disks.swap_remove(at));
        // A size that was changed means another disk.
        let warm = there.as_ref().is_some_and(|disk| disk.bytes == self.bytes);
        let victims = self.bounds.account(&self.folder, &disks)?.room(&disks, self.bytes)?;
        for victim in there.iter().filter(|_| !warm).chain(victims) {
            tracing::info!(key = victim.key, bytes = victim.used, "a build cache makes room for another");
            victim.discard()?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("make", &folder))?;
        let file = if warm {
            let file = open(&free, false).map_err(failed("open", &free))?;
            fs::rename(&free, &busy).map_err(failed("take", &free))?;
            file
        } else {
            open(&busy, true).map_err(failed("make", &busy))?
        };
        is_locked(&file).map_err(failed("lock", &busy))?;
        let disk = CacheDisk { file, folder, number, bytes: self.bytes, warm, kept: false };
        if !warm {
            let made = scratch::create(&disk.file, self.bytes);
            made.map_err(|error| failed("make", &busy)(io::Error::other(error)))?;
        }
        Ok(disk)
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
            // Nobody is to find it while it has its good name and still our lock.
            let _guard = guard(self.folder.parent().unwrap_or(&self.folder))?;
            fs::rename(&busy, &free).map_err(failed("keep", &busy))?;
            self.kept = true;
            flock(&self.file, FlockOperation::Unlock).map_err(|errno| failed("keep", &free)(errno.into()))?;
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
        let caches = Caches::new(folder.path().join("cache"), BYTES, Bounds::default());
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
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::default());
        let disks: Vec<_> = (0..6).map(|_| caches.take("k").unwrap()).collect();
        assert_eq!(disks.iter().map(|disk| disk.number).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        disks.into_iter().for_each(|disk| disk.keep().unwrap());
        let mut left: Vec<_> =
            fs::read_dir(folder.path().join("k")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["0.ext4", "1.ext4", "2.ext4", "3.ext4"]);
    }

    #[test]
    fn what_was_not_unmounted_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::default());
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
        Caches::new(folder.path().to_owned(), BYTES, Bounds::default()).take("k").unwrap().keep().unwrap();
        let disk = Caches::new(folder.path().to_owned(), 2 * BYTES, Bounds::default()).take("k").unwrap();
        assert_eq!((disk.is_warm(), disk.file.metadata().unwrap().len()), (false, 2 * BYTES));
    }

    #[test]
    fn a_size_between_two_blocks_is_the_same_disk_again() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES + 1000, Bounds::default());
        caches.take("k").unwrap().keep().unwrap();
        assert!(caches.take("k").unwrap().is_warm());
    }

    #[test]
    fn keys_never_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::default());
        for key in ["", ".", "..", "../x", "a/b", "a b", "é"] {
            assert!(matches!(caches.take(key), Err(Error::CacheKey(_))), "{key:?}");
        }
    }

    #[test]
    fn what_killed_builds_of_any_key_left_goes_with_the_next_build() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::default());
        let mut disk = caches.take("a").unwrap();
        disk.kept = true; // as a killed process leaves it
        drop(disk);
        let _other = caches.take("b").unwrap();
        let keys = |disk: &Disk| disk.key.clone();
        assert_eq!(Disk::all(folder.path()).unwrap().iter().map(keys).collect::<Vec<_>>(), ["b"]);
    }
}
