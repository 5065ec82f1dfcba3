//! Advisory locks between processes (and threads: each lock is an open file description of its own).
//!
//! `flock(2)` ends with the process, so a killed owner never leaves a lock behind. The kernel offers no deadline for it,
//! hence a try-lock repeated until one passes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, IoContext, Result};

const POLL: Duration = Duration::from_millis(10);

/// Waits until `attempt` gets its lock.
fn wait(
    what: &str,
    path: &Path,
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<(), TryLockError>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error).at("lock", path),
            Err(TryLockError::WouldBlock) if start.elapsed() >= deadline => {
                return Err(Error::Locked { what: what.to_owned(), seconds: deadline.as_secs() });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
        }
    }
}

/// Takes a shared lock on an open file.
pub(crate) fn shared(file: &File, what: &str, path: &Path, deadline: Duration) -> Result<()> {
    wait(what, path, deadline, || file.try_lock_shared())
}

/// Tries to take an exclusive lock on an open file; `false` when someone else has one.
pub(crate) fn try_exclusive(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).at("lock", path),
    }
}

/// An exclusive lock with a file of its own, removed again when the lock is dropped.
#[derive(Debug)]
pub(crate) struct NamedLock {
    path: PathBuf,
    _file: File,
}

impl NamedLock {
    /// Takes the lock, waiting up to `deadline`.
    pub(crate) fn acquire(path: &Path, what: &str, deadline: Duration) -> Result<Self> {
        let start = Instant::now();
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .at("open the lock", path)?;
            wait(what, path, deadline.saturating_sub(start.elapsed()), || file.try_lock())?;
            // The previous owner may have removed the file between our open and our lock; then ours guards nothing.
            let ours = file.metadata().at("read", path)?;
            match std::fs::metadata(path) {
                Ok(now) if now.ino() == ours.ino() && now.dev() == ours.dev() => {
                    return Ok(Self { path: path.to_owned(), _file: file });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at("read", path),
            }
        }
    }
}

impl Drop for NamedLock {
    fn drop(&mut self) {
        // Removed while still locked; a waiter on this file notices and opens the new one.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes the lock files in `dir` that killed processes left. One that is held, or waited for, stays or is made anew.
pub(crate) fn sweep(dir: &Path, keep: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path == keep {
            continue;
        }
        // Whoever waits for this very file notices that it is gone, as after any owner.
        if let Ok(file) = File::open(&path)
            && try_exclusive(&file, &path)?
        {
            let same = std::fs::metadata(&path)
                .is_ok_and(|now| file.metadata().is_ok_and(|ours| now.ino() == ours.ino()));
            if same {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn only_one_owner_at_a_time_and_no_file_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = NamedLock::acquire(&path, "x", Duration::from_secs(30)).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn only_abandoned_lock_files_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (held, dead, kept) = (dir.path().join("held"), dir.path().join("dead"), dir.path().join("kept"));
        std::fs::write(&dead, "").unwrap();
        std::fs::write(&kept, "").unwrap();
        let lock = NamedLock::acquire(&held, "x", Duration::ZERO).unwrap();
        sweep(dir.path(), &kept).unwrap();
        assert!(held.exists() && kept.exists() && !dead.exists());
        drop(lock);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let _held = NamedLock::acquire(&path, "x", Duration::ZERO).unwrap();
        let error = NamedLock::acquire(&path, "layer x", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with("layer x: another process has held the lock"), "{error}");
    }
}
