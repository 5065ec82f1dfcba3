//! What keeps a half-made image until its references exist: a lease in containerd, and a locked file that says who lives.
//!
//! A process that is killed drops its lock; the next one to look removes its lease, and containerd everything it kept.
//! A node that is never started again is covered by the lease's expiry.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::blocking;
use crate::containerd::scope::Scope;
use crate::error::{Error, IoContext, Result};

/// On leases of imports: the folder of the locks.
const IMPORT: &str = "cloister.dev/import";
/// containerd removes a lease by itself after this.
const EXPIRE: &str = "containerd.io/gc.expire";
const LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// How long to wait for others that change references.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a hold's name begins.
const NAME: &str = "cloister-import-";
/// How long a file may be there without a lock or a lease: it is made first.
const YOUNG: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A lease and the lock on its file.
pub struct Hold {
    /// Name of the lease, and a prefix for names of what is made under it.
    pub id: String,
    path: PathBuf,
    _lock: File,
}

impl Hold {
    /// Makes one, with its lock in `folder`.
    pub async fn new(scope: &Scope, folder: &Path) -> Result<(Self, Scope)> {
        let now = jiff::Timestamp::now();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{NAME}{}-{}-{number}", now.as_nanosecond(), std::process::id());
        let path = folder.join(&id);
        std::fs::create_dir_all(folder).at("make", folder)?;
        let lock = OpenOptions::new().create_new(true).write(true).open(&path).at("make", &path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).at("lock", &path)?;
        let expire = now.checked_add(LIFETIME).unwrap_or(now).to_string();
        let labels =
            HashMap::from([(IMPORT.to_owned(), folder.display().to_string()), (EXPIRE.to_owned(), expire)]);
        let hold = Self { id, path, _lock: lock };
        if let Err(error) = scope.create_lease(&hold.id, labels).await {
            let _ = std::fs::remove_file(&hold.path);
            return Err(error);
        }
        let leased = scope.leased(&hold.id)?;
        Ok((hold, leased))
    }

    /// Ends the lease, and waits until what nothing else keeps is gone.
    pub async fn end(self, scope: &Scope) -> Result<()> {
        scope.delete_lease(&self.id, true).await?;
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }
}

/// Removes what processes that died left behind.
pub async fn sweep(scope: &Scope, folder: &Path) -> Result<()> {
    forget(folder, YOUNG);
    for lease in scope.leases_labelled(IMPORT).await? {
        if lease.labels.get(IMPORT).is_none_or(|of| *of != folder.display().to_string()) {
            continue;
        }
        let path = folder.join(&lease.id);
        if !is_locked(&path) {
            tracing::info!(lease = lease.id, "an import was cut short: removing what it left");
            scope.delete_lease(&lease.id, true).await?;
            let _ = std::fs::remove_file(&path);
        }
    }
    Ok(())
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// Removes the files of processes that died before they had a lease, or whose lease has expired. A lease without its file
/// is nobody's, too.
fn forget(folder: &Path, young: Duration) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME));
        let made = entry.metadata().and_then(|meta| meta.modified());
        let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= young));
        if ours && old && !is_locked(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Waits for the right to change references and records; it ends with the returned file.
pub async fn turn(folder: &Path) -> Result<File> {
    let folder = folder.to_owned();
    blocking::run(move || {
        std::fs::create_dir_all(&folder).at("make", &folder)?;
        let path = folder.join("turn");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        let deadline = Instant::now() + PATIENCE;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > deadline {
                return Err(Error::Precondition(format!(
                    "{}: somebody has held it for {} s",
                    path.display(),
                    PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(file)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_nobody_locks_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| File::create(folder.path().join(name)).unwrap();
        let living = make("cloister-import-1-1-0");
        flock(&living, FlockOperation::NonBlockingLockExclusive).unwrap();
        make("cloister-import-1-2-0");
        make("turn");
        let left = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        forget(folder.path(), Duration::from_secs(60));
        assert_eq!(left().len(), 3, "one that was just made may get its lock yet");
        forget(folder.path(), Duration::ZERO);
        assert_eq!(left(), ["cloister-import-1-1-0", "turn"]);
    }
}
