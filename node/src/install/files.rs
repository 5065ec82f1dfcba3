//! Files of others that we change: what they were is on disk before they are changed, so that they can be given back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Largest configuration file that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// One file as it was and as we made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The file, links followed.
    pub path: PathBuf,
    /// Its text before; `None` when there was no such file.
    pub before: Option<String>,
    /// Its text after.
    pub after: String,
}

/// The text of a file; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<String>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    anyhow::ensure!(metadata.is_file() && metadata.len() <= LARGEST, "{} is no small file", path.display());
    fs::read_to_string(path).map(Some).with_context(|| format!("cannot read {}", path.display()))
}

/// Replaces a file's text at once, keeping its mode and owner.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().with_context(|| format!("{} has no folder", path.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mode, owner) = match fs::metadata(path) {
        Ok(old) => (old.mode() & 0o7777, Some((old.uid(), old.gid()))),
        Err(_) => (0o644, None),
    };
    let mut new = tempfile::Builder::new().prefix(".cloister-").tempfile_in(folder)?;
    new.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    new.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some((user, group)) = owner {
        fchown(new.as_file(), Some(user), Some(group))?;
    }
    new.as_file().sync_all()?;
    new.persist(path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(File::open(folder)?.sync_all()?)
}

impl Change {
    /// Whether the file is as we made it.
    pub fn is_made(&self) -> Result<bool> {
        Ok(read(&self.path)?.as_deref() == Some(&self.after))
    }

    /// Makes it.
    pub fn make(&self) -> Result<()> {
        write(&self.path, &self.after)
    }

    /// Gives back what was there.
    pub fn undo(&self) -> Result<()> {
        match &self.before {
            Some(before) => write(&self.path, before),
            None => remove(&self.path),
        }
    }
}

/// Removes a file that may be gone already.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
