//! What all cache disks of a machine may take together, whoever named their keys and sizes.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::disks::Disk;
use super::error::{Error, Result};

const MIB: u64 = 1 << 20;

/// `[caches]` of the node's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Most disks, those in use included.
    disks: u32,
    /// Most MiB; 0 for half of the file system that they are on.
    size: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { disks: 64, size: 0 }
    }
}

/// How much of its bounds a folder of disks takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Disks there are.
    pub disks: u64,
    /// Most of them.
    pub most_disks: u64,
    /// Bytes they take: all of its size for one in use, as nothing else bounds it.
    pub bytes: u64,
    /// Most bytes.
    pub most_bytes: u64,
}

impl Bounds {
    /// At most so many disks with so many bytes, rounded down to MiB.
    pub fn new(disks: u32, bytes: u64) -> Self {
        Self { disks, size: bytes / MIB }
    }

    /// What `disks`, all those in `folder`, take of the bounds.
    ///
    /// # Errors
    /// When the size of the file system can't be read.
    pub fn account(&self, folder: &Path, disks: &[Disk]) -> Result<Account> {
        let most_bytes = match self.size {
            0 => half(folder)?,
            size => size.saturating_mul(MIB),
        };
        let bytes = disks.iter().map(Disk::cost).fold(0, u64::saturating_add);
        Ok(Account { disks: disks.len() as u64, most_disks: self.disks.into(), bytes, most_bytes })
    }
}

impl Account {
    /// Which of `disks`, on which this account is, have to go so that one more of `bytes` can be used: those that
    /// nobody uses, the least recently used first.
    ///
    /// # Errors
    /// When it is too large, or too much is in use.
    pub(super) fn room(mut self, disks: &[Disk], bytes: u64) -> Result<Vec<&Disk>> {
        if bytes > self.most_bytes || self.most_disks == 0 {
            return Err(Error::CacheTooLarge { bytes, most: self.most_bytes });
        }
        let mut free: Vec<&Disk> = disks.iter().filter(|disk| !disk.busy).collect();
        free.sort_by_key(|disk| std::cmp::Reverse(disk.written));
        let mut victims = Vec::new();
        while self.disks >= self.most_disks || self.bytes.saturating_add(bytes) > self.most_bytes {
            let Some(oldest) = free.pop() else {
                return Err(Error::CachesInUse {
                    disks: self.disks,
                    taken: self.bytes,
                    most: self.most_bytes,
                    bytes,
                });
            };
            self.disks -= 1;
            self.bytes -= oldest.cost();
            victims.push(oldest);
        }
        Ok(victims)
    }
}

/// Half of the bytes of the file system of a folder, or of the nearest one above that exists.
fn half(folder: &Path) -> Result<u64> {
    let mut at: PathBuf = folder.to_owned();
    loop {
        match rustix::fs::statvfs(&at) {
            Ok(found) => return Ok(found.f_blocks.saturating_mul(found.f_frsize) / 2),
            Err(rustix::io::Errno::NOENT) if at.pop() => {}
            Err(errno) => return Err(super::cache::failed("measure", &at)(io::Error::from(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::Caches;

    const BYTES: u64 = 8 << 20;

    #[test]
    fn half_of_the_file_system_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let account = Bounds::default().account(&folder.path().join("not/yet"), &[]).unwrap();
        let found = rustix::fs::statvfs(folder.path()).unwrap();
        assert_eq!(account.most_bytes, found.f_blocks * found.f_frsize / 2);
        assert_eq!((account.disks, account.most_disks, account.bytes), (0, 64, 0));
    }

    /// Bytes of an empty disk of [`BYTES`] that are written.
    fn empty() -> u64 {
        let folder = tempfile::tempdir().unwrap();
        Caches::new(folder.path().to_owned(), BYTES, Bounds::default()).take("k").unwrap().keep().unwrap();
        Disk::all(folder.path()).unwrap()[0].used
    }

    fn keys(folder: &Path) -> Vec<String> {
        Disk::all(folder).unwrap().into_iter().map(|disk| disk.key).collect()
    }

    /// As if it had been used so many hours ago.
    fn age(folder: &Path, key: &str, hours: u64) {
        let file = File::options().write(true).open(folder.join(key).join("0.ext4")).unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        file.set_modified(then).unwrap();
    }

    #[test]
    fn the_least_recently_used_disk_goes_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::new(3, 1 << 30));
        for (hours, key) in [(3, "a"), (9, "b"), (5, "c")] {
            caches.take(key).unwrap().keep().unwrap();
            age(folder.path(), key, hours);
        }
        caches.take("d").unwrap().keep().unwrap();
        assert_eq!(keys(folder.path()), ["a", "c", "d"]);
        assert!(!folder.path().join("b").exists());
        assert!(caches.take("a").unwrap().is_warm(), "one that is there needs no room");
    }

    #[test]
    fn disks_in_use_are_never_removed_and_count_with_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let caches = Caches::new(folder.path().to_owned(), BYTES, Bounds::new(9, 2 * BYTES + empty()));
        caches.take("kept").unwrap().keep().unwrap();
        let (first, second) = (caches.take("a").unwrap(), caches.take("b").unwrap());
        let error = caches.take("c").unwrap_err();
        assert!(matches!(error, Error::CachesInUse { disks: 2, .. }), "{error}");
        assert!(error.to_string().contains("16 of 16 MiB"), "{error}");
        drop((first, second));
        caches.take("c").unwrap().keep().unwrap();
        assert!(keys(folder.path()).contains(&"c".to_owned()));
    }

    #[test]
    fn more_than_the_bound_is_refused_and_nothing_removed_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds::new(2, 2 * BYTES);
        Caches::new(folder.path().to_owned(), BYTES, bounds).take("a").unwrap().keep().unwrap();
        let error = Caches::new(folder.path().to_owned(), 3 * BYTES, bounds).take("b").unwrap_err();
        assert!(error.to_string().contains("24 MiB is more than the 16 MiB"), "{error}");
        assert_eq!(keys(folder.path()), ["a"]);
        assert!(!folder.path().join("b").exists());
    }
}
