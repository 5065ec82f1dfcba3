//! Trees that a container may have changed meanwhile: every step is taken from an open folder, no link is followed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, unlinkat};
use rustix::io::{Errno, Result};

/// How deep folders may be in each other.
pub const DEPTH: usize = 64;

/// The names in a folder.
pub fn names(folder: impl AsFd) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Opens a folder in a folder.
pub fn open(folder: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

/// What is at a name; `None` when there is nothing.
pub fn stat(folder: impl AsFd, name: &OsStr) -> Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The type of what was found.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Removes what is at a name, with everything below it; nothing there is fine.
pub fn remove(folder: impl AsFd, name: &OsStr) -> Result<()> {
    remove_at(folder.as_fd(), name, DEPTH)
}

/// Removes everything in a folder.
pub fn clear(folder: impl AsFd) -> Result<()> {
    names(&folder)?.iter().try_for_each(|name| remove(&folder, name))
}

fn remove_at(folder: impl AsFd, name: &OsStr, depth: usize) -> Result<()> {
    match unlinkat(&folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    let inner = open(&folder, name)?;
    for name in names(&inner)? {
        remove_at(&inner, &name, depth - 1)?;
    }
    unlinkat(&folder, name, AtFlags::REMOVEDIR)
}
