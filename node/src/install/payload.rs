//! What is installed, in a folder of its version: published by rename, chosen by one symlink, removed when its last pod is gone.
//!
//! A shim finds its guest and its programs beside itself and locks its folder for as long as it lives, so a pod keeps the
//! version it started with whatever `current` says meanwhile.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use cloister_layer::digest::Hasher;
use rustix::fs::{FlockOperation, flock};

/// Locked, shared, by each process that runs from a version's folder.
const LOCK: &str = "lock";
/// How long a version stays after it was last chosen: a shim that is starting from it has not locked it yet.
const GRACE: Duration = Duration::from_secs(600);

/// How the name of a version begins that is being removed.
const GONE: &str = ".gone-";

/// The folder with all versions.
#[derive(Debug, Clone)]
pub struct Versions(PathBuf);

impl Versions {
    /// Those below `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The version that new pods start with.
    pub fn current(&self) -> PathBuf {
        self.0.join("current")
    }

    fn folder(&self) -> PathBuf {
        self.0.join("versions")
    }

    /// Puts what is below `from` there and chooses it; what is there already is not copied. Returns its name.
    pub fn publish(&self, from: &Path) -> Result<String> {
        let files = list(from)?;
        if files.is_empty() {
            bail!("nothing to install in {}", from.display());
        }
        let name = format!("{}-{}", env!("CARGO_PKG_VERSION"), &digest(from, &files)?[..12]);
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let version = folder.join(&name);
        if !version.exists() {
            let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&folder)?;
            copy(from, new.path(), &files)?;
            File::create(new.path().join(LOCK))?;
            fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))?;
            rustix::fs::syncfs(File::open(new.path())?)?;
            fs::rename(new.path(), &version).with_context(|| format!("cannot make {}", version.display()))?;
        }
        self.choose(&name)?;
        Ok(name)
    }

    /// Lets `current` lead to a version, at once for whoever looks.
    fn choose(&self, name: &str) -> Result<()> {
        let target = Path::new("versions").join(name);
        let current = self.current();
        let old = fs::read_link(&current).ok();
        if old.as_ref() == Some(&target) {
            return Ok(());
        }
        if let Some(old) = old.and_then(|old| File::open(self.0.join(old)).ok()) {
            // From now on it is not the one chosen last.
            old.set_modified(SystemTime::now())?;
        }
        let new = self.0.join(".current");
        let _ = fs::remove_file(&new);
        symlink(&target, &new).with_context(|| format!("cannot make {}", new.display()))?;
        fs::rename(&new, &current).with_context(|| format!("cannot change {}", current.display()))
    }

    /// Removes versions that no process runs from and that were not chosen in the last minutes, and what an interrupted
    /// [`Versions::publish`] left. Returns the names of the removed ones.
    pub fn prune(&self) -> Result<Vec<String>> {
        let current = fs::read_link(self.current()).ok();
        let mut removed = Vec::new();
        for entry in fs::read_dir(self.folder())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let chosen = current.as_deref().and_then(Path::file_name) == Some(entry.file_name().as_os_str());
            // What a removal had left went with the version of its name.
            let Ok(metadata) = entry.metadata() else { continue };
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            if !chosen && age >= GRACE && !in_use(&entry.path())? {
                remove(&entry.path())?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Fails while pods run from any of them: nothing could clean up after them once the shim is gone.
    pub fn check_unused(&self) -> Result<()> {
        for entry in fs::read_dir(self.folder()).into_iter().flatten() {
            let path = entry?.path();
            if in_use(&path)? {
                bail!("{} is in use: delete the pods of the runtime class cloister first", path.display());
            }
        }
        Ok(())
    }

    /// Removes all of it; a folder that is mounted stays, empty: it is busy, or in a file system that is read-only.
    pub fn remove(&self) -> Result<()> {
        let removed = fs::remove_dir_all(&self.0);
        let empty = || fs::read_dir(&self.0).is_ok_and(|mut all| all.next().is_none());
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound && !empty() => {
                Err(error).with_context(|| format!("cannot remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a process holds the lock of a version.
fn in_use(version: &Path) -> Result<bool> {
    match File::open(version.join(LOCK)) {
        Ok(lock) => Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", version.display())),
    }
}

/// Takes a folder out of sight first: half a version must never be found. What an interrupted removal left of it goes too.
fn remove(version: &Path) -> Result<()> {
    let name = version.file_name().unwrap_or_default().to_string_lossy();
    let gone = version.with_file_name(format!("{GONE}{}", name.trim_start_matches(GONE)));
    if gone != version {
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", gone.display()));
            }
            _ => {}
        }
        fs::rename(version, &gone).with_context(|| format!("cannot move {}", version.display()))?;
    }
    fs::remove_dir_all(&gone).with_context(|| format!("cannot remove {}", gone.display()))
}

/// The regular files and symlinks below a folder, by relative path, sorted.
fn list(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            let name = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(name);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// One digest of names, modes and contents.
fn digest(root: &Path, files: &[PathBuf]) -> Result<String> {
    let mut hash = Hasher::new();
    for file in files {
        let path = root.join(file);
        let metadata = fs::symlink_metadata(&path)?;
        let content = if metadata.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else {
            let mut content = Vec::new();
            File::open(&path)?.read_to_end(&mut content)?;
            content
        };
        let head = format!("{} {:o} {}\0", file.display(), metadata.mode(), content.len());
        hash.update(head.as_bytes());
        hash.update(&content);
    }
    Ok(hash.finish().hex())
}

fn copy(from: &Path, to: &Path, files: &[PathBuf]) -> Result<()> {
    for file in files {
        let (source, target) = (from.join(file), to.join(file));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        let metadata = fs::symlink_metadata(&source)?;
        if metadata.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            continue;
        }
        let mut out = File::create(&target).with_context(|| format!("cannot make {}", target.display()))?;
        io::copy(&mut File::open(&source)?, &mut out)
            .with_context(|| format!("cannot write {}", target.display()))?;
        out.flush()?;
        out.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(content: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/shim"), content).unwrap();
        fs::set_permissions(folder.path().join("bin/shim"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("shim", folder.path().join("bin/other")).unwrap();
        folder
    }

    fn age(folder: &Path) {
        File::open(folder).unwrap().set_modified(SystemTime::now() - 2 * GRACE).unwrap();
    }

    #[test]
    fn a_version_is_there_whole_and_chosen() {
        let to = tempfile::tempdir().unwrap();
        let versions = Versions::new(to.path().join("cloister"));
        let name = versions.publish(runtime("one").path()).unwrap();
        assert!(name.starts_with(env!("CARGO_PKG_VERSION")));
        let shim = versions.current().join("bin/other");
        assert_eq!(fs::read_to_string(&shim).unwrap(), "one");
        assert_eq!(fs::metadata(&shim).unwrap().mode() & 0o7777, 0o755, "no setuid on the node");
        assert_eq!(versions.publish(runtime("one").path()).unwrap(), name);
        assert_ne!(versions.publish(runtime("two").path()).unwrap(), name);
        assert_eq!(fs::read_to_string(&shim).unwrap(), "two");
    }

    #[test]
    fn a_version_goes_when_its_last_process_has() {
        let to = tempfile::tempdir().unwrap();
        let versions = Versions::new(to.path().to_owned());
        let first = versions.publish(runtime("one").path()).unwrap();
        let old = versions.folder().join(&first);
        let lock = File::open(old.join(LOCK)).unwrap();
        flock(&lock, FlockOperation::LockShared).unwrap();
        versions.publish(runtime("two").path()).unwrap();
        assert!(versions.prune().unwrap().is_empty(), "chosen a moment ago");
        age(&old);
        assert!(versions.prune().unwrap().is_empty(), "in use");
        assert!(versions.check_unused().is_err());
        drop(lock);
        assert_eq!(versions.prune().unwrap(), [first]);
        assert_eq!(fs::read_dir(versions.folder()).unwrap().count(), 1);
        versions.check_unused().unwrap();
        versions.remove().unwrap();
        assert!(!to.path().exists());
    }

    #[test]
    fn what_an_interrupted_installation_left_goes_too() {
        let to = tempfile::tempdir().unwrap();
        let versions = Versions::new(to.path().to_owned());
        versions.publish(runtime("one").path()).unwrap();
        let half = versions.folder().join(".new-half");
        fs::create_dir(&half).unwrap();
        age(&half);
        assert_eq!(versions.prune().unwrap(), [".new-half"]);
        // A removal was interrupted, and the version installed again since.
        let (old, gone) = (versions.folder().join("old"), versions.folder().join(".gone-old"));
        for folder in [&old, &gone] {
            fs::create_dir_all(folder.join("bin")).unwrap();
        }
        age(&old);
        assert_eq!(versions.prune().unwrap(), ["old"]);
        assert!(!old.exists() && !gone.exists());
    }
}
