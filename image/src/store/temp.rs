//! Work in progress: folders under `tmp/` that belong to one live process each.
//!
//! The owner holds a lock on its folder. A folder nobody holds a lock on was left by a killed process, and the next
//! start removes it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{LOCK_WAIT, lock};
use crate::error::{IoContext, Result};

/// A private folder in the store's own file system, removed when dropped.
#[derive(Debug)]
pub(crate) struct TempDir {
    // Dropped first to last: the folder goes while its lock is still held.
    dir: tempfile::TempDir,
    _lock: File,
}

impl TempDir {
    /// Makes a folder under `tmp` and locks it.
    pub(crate) fn new(tmp: &Path, guard: &Path) -> Result<Self> {
        let guard_file = open_guard(guard)?;
        // Shared, so that no cleaner looks between the making and the locking of the folder.
        lock::shared(&guard_file, "temporary folder", guard, LOCK_WAIT)?;
        let dir =
            tempfile::Builder::new().prefix("job-").tempdir_in(tmp).at("make a temporary folder in", tmp)?;
        let lock = open_dir(dir.path())?;
        lock::shared(&lock, "temporary folder", dir.path(), LOCK_WAIT)?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new file in the folder, readable and writable.
    pub(crate) fn file(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.path().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path).at("create", &path)?;
        Ok((file, path))
    }
}

/// Removes what dead processes left under `tmp`. What belongs to live ones stays.
pub(crate) fn clean(tmp: &Path, guard: &Path) -> Result<()> {
    let guard_file = open_guard(guard)?;
    if !lock::try_exclusive(&guard_file, guard)? {
        // Someone is starting work this very moment; the next start will clean.
        return Ok(());
    }
    for entry in std::fs::read_dir(tmp).at("list", tmp)? {
        let path = entry.at("list", tmp)?.path();
        let dir = match open_dir(&path) {
            Ok(dir) => dir,
            // Removed by its owner meanwhile, or not a folder: nothing we made.
            Err(_) => continue,
        };
        if lock::try_exclusive(&dir, &path)? {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).at("remove", &path);
                }
                _ => tracing::info!(path = %path.display(), "removed what a killed process left"),
            }
        }
    }
    Ok(())
}

fn open_guard(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).at("open the lock", path)
}

fn open_dir(path: &Path) -> Result<File> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map(File::from)
    .at("open", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_folders_stay_and_dead_ones_go() {
        let root = tempfile::tempdir().unwrap();
        let (tmp, guard) = (root.path().join("tmp"), root.path().join("guard"));
        std::fs::create_dir(&tmp).unwrap();
        let live = TempDir::new(&tmp, &guard).unwrap();
        live.file("blob").unwrap();
        std::fs::create_dir_all(tmp.join("job-dead/deep")).unwrap();
        std::fs::write(tmp.join("job-dead/deep/file"), "x").unwrap();
        clean(&tmp, &guard).unwrap();
        assert!(live.path().join("blob").exists());
        assert!(!tmp.join("job-dead").exists());
        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
    }
}
