//! Making one folder's content another's while containers watch.
//!
//! A folder in kubelet's layout (`pkg/volume/util/atomic_writer.go`: files in `..TIME`, `..data` linking to it, and
//! links to `..data/NAME`) changes as kubelet changes it: the new `..TIME` comes, missing links are made, `..data` is
//! replaced by rename, links to what is gone and the old `..TIME` go. A process that watches sees the same events and
//! never a mixture. Other files are rewritten in place, so that bind mounts of one file show its new content.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, mkdirat, openat, readlinkat, renameat,
    symlinkat,
};
use rustix::io::Errno;

use super::tree::{self, DEPTH, kind, names, stat};

/// The link to the present revision.
const DATA: &str = "..data";
/// Its successor, until it is renamed.
const DATA_NEW: &str = "..data_tmp";

/// Makes what is in `content` what is in `staged`, which is taken apart. Both are on one mount.
pub fn replace(content: &OwnedFd, staged: &OwnedFd) -> io::Result<()> {
    let data = OsStr::new(DATA);
    let revision = revision(staged)?;
    let present = link(content, data)?;
    let mut keep = names(staged)?;
    keep.retain(|name| Some(name) != revision.as_ref() && name != data);

    if let Some(new) = &revision {
        if present.as_ref() != Some(new) {
            tree::remove(content, new)?; // of an attempt that failed
        }
        place_revision(content, staged, new)?;
    }
    for name in &keep {
        place(content, staged, name, DEPTH)?;
    }
    if let Some(new) = revision {
        if present.as_ref() != Some(&new) {
            tree::remove(content, OsStr::new(DATA_NEW))?;
            symlinkat(&*new, content, DATA_NEW)?;
            renameat(content, DATA_NEW, content, DATA)?;
        }
        keep.extend([new, data.to_owned()]);
    }
    // kubelet removes the old revision last.
    let mut gone = names(content)?;
    gone.retain(|name| !keep.contains(name));
    gone.sort_by_key(|name| Some(name) == present.as_ref());
    gone.iter().try_for_each(|name| tree::remove(content, name)).map_err(Into::into)
}

/// The folder that `..data` names, in kubelet's layout.
fn revision(folder: &OwnedFd) -> io::Result<Option<OsString>> {
    let Some(target) = link(folder, OsStr::new(DATA))? else { return Ok(None) };
    let plain = target.as_bytes().starts_with(b"..")
        && target.len() > 2
        && !target.as_bytes().contains(&b'/')
        && ![DATA, DATA_NEW].contains(&target.to_str().unwrap_or_default());
    let folder = plain && stat(folder, &target)?.is_some_and(|stat| kind(&stat) == FileType::Directory);
    if !folder {
        return Err(io::Error::other("..data of the archive does not name a folder beside it"));
    }
    Ok(Some(target))
}

/// A new revision is made by mkdir, as kubelet does, and filled before anything names it.
fn place_revision(content: &OwnedFd, staged: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match mkdirat(content, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => place(content, staged, name, DEPTH),
        Err(e) => Err(e.into()),
    }
}

/// Where a link leads; `None` when there is no link.
fn link(folder: impl AsFd, name: &OsStr) -> io::Result<Option<OsString>> {
    match readlinkat(folder, name, Vec::new()) {
        Ok(target) => Ok(Some(OsStr::from_bytes(target.as_bytes()).to_owned())),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes `to/name` what `from/name` is.
fn place(to: &OwnedFd, from: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    let Some(new) = stat(from, name)? else { return Ok(()) };
    let Some(old) = stat(to, name)? else { return Ok(renameat(from, name, to, name)?) };
    match (kind(&old), kind(&new)) {
        (FileType::Directory, FileType::Directory) => {
            if depth == 0 {
                return Err(io::Error::other("folders are too deep in each other"));
            }
            let (inner, staged) = (tree::open(to, name)?, tree::open(from, name)?);
            let keep = names(&staged)?;
            for name in &keep {
                place(&inner, &staged, name, depth - 1)?;
            }
            for name in names(&inner)?.iter().filter(|name| !keep.contains(name)) {
                tree::remove(&inner, name)?;
            }
        }
        (FileType::RegularFile, FileType::RegularFile) => rewrite(to, from, name)?,
        (FileType::Symlink, FileType::Symlink) => {
            if link(to, name)? != link(from, name)? {
                renameat(from, name, to, name)?;
            }
            return Ok(());
        }
        _ => {
            tree::remove(to, name)?;
            return Ok(renameat(from, name, to, name)?);
        }
    }
    attributes(to, name, &old, &new)
}

/// Gives an existing file the content of another; one that has it already is not touched.
fn rewrite(to: &OwnedFd, from: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let open = |folder, flags| -> io::Result<std::fs::File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(openat(folder, name, flags, Mode::empty())?.into())
    };
    let mut new = Vec::new();
    open(from, OFlags::RDONLY)?.read_to_end(&mut new)?;
    let mut file = open(to, OFlags::RDWR)?;
    let length = new.len() as u64;
    if file.metadata()?.len() == length {
        let mut old = Vec::with_capacity(new.len());
        (&file).take(length).read_to_end(&mut old)?;
        if old == new {
            return Ok(());
        }
        file.rewind()?;
    }
    io::Write::write_all(&mut file, &new)?;
    file.set_len(length)
}

fn attributes(folder: &OwnedFd, name: &OsStr, old: &Stat, new: &Stat) -> io::Result<()> {
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) {
        let (uid, gid) = (Uid::from_raw(new.st_uid), Gid::from_raw(new.st_gid));
        chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if old.st_mode != new.st_mode {
        chmodat(folder, name, Mode::from_raw_mode(new.st_mode & 0o7777), AtFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
