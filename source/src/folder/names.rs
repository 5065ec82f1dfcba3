//! What is done to one name in a folder that is open, through no link.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// How names are looked up.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// How folders are opened.
pub(super) const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a file gets when its bytes are there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// Permissions, with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    /// Time of change since 1970.
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    /// Extended attributes; only those that a context sends are kept.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) fn times(last: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: last.seconds, tv_nsec: last.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn finish(file: impl AsFd, last: &Attributes) -> rustix::io::Result<()> {
    for (name, value) in &last.xattrs {
        if name.starts_with(b"user.") || name == b"security.capability" {
            match rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
                // Not every file system has them, and not everyone may set them.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(last.mode & 0o7777))?;
    rustix::fs::futimens(&file, &times(last))
}

pub(super) fn kind(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what has this name, with all that is in it. It is no deeper than a context may be.
pub(super) fn remove(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    match kind(&folder, name)? {
        None => Ok(()),
        Some(FileType::Directory) => {
            clear(&rustix::fs::openat2(&folder, name, FOLDER, Mode::empty(), BENEATH)?)?;
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
        }
        Some(_) => rustix::fs::unlinkat(folder, name, AtFlags::empty()),
    }
}

pub(super) fn clear(folder: &OwnedFd) -> rustix::io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            remove(folder, name.to_bytes())?;
        }
    }
    Ok(())
}
