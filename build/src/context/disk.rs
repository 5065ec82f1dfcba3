//! A context that is a folder. Every file is opened from the folder's descriptor, and no link is followed on the way.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use bollard_buildkit_proto::fsutil::types::Stat;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::mode;

/// Beneath the folder, through no link of any kind.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Largest value of an extended attribute, in bytes: the kernel's own limit.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Which file it is, whatever its name.
pub(crate) type Identity = (u64, u64);

/// Opens the folder of a context; links in its own path are followed.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// How often to look again when folders on the way were moved meanwhile.
const TRIES: u32 = 64;

/// Opens what stands at `path`, with links followed as if `at` were `/`.
fn open_in(at: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let scope = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match rustix::fs::openat2(&at, path, flags | OFlags::CLOEXEC, Mode::empty(), scope) {
            // The kernel could not be sure that a `..` stays inside.
            Err(Errno::AGAIN) => {}
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens a folder in `at`, through links that stay in it.
pub(crate) fn open_inner(at: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    open_in(at, path, OFlags::DIRECTORY)
}

/// Opens a regular file in `at` for reading, through links that stay in it. Anything else neither blocks nor acts.
pub(crate) fn open_followed(at: impl AsFd, path: &str) -> io::Result<File> {
    let file = open_in(at, path, OFlags::NONBLOCK | OFlags::NOCTTY)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Opens a folder beneath `at`.
pub(crate) fn open_folder(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(at, path, flags, Mode::empty(), BENEATH)?)
}

/// Opens a file beneath `at` for reading. What is no regular file any more neither blocks nor acts.
pub(crate) fn open_file(at: impl AsFd, path: &str) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat2(at, path, flags, Mode::empty(), BENEATH)?))
}

/// The target of a link beneath `at`; nothing when it is no link, or not there.
pub(crate) fn link_target(at: impl AsFd, path: &str) -> io::Result<Option<CString>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(at, path, flags, Mode::empty(), BENEATH) {
        Ok(file) if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Symlink => {
            Ok(Some(rustix::fs::readlinkat(&file, c"", Vec::new())?))
        }
        Ok(_) => Ok(None),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names and kinds in a folder, at most `limit` of them, in no order.
pub(crate) fn names(folder: impl AsFd, limit: usize) -> io::Result<Option<Vec<(CString, FileType)>>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if found.len() == limit {
            return Ok(None);
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(Some(found))
}

/// What BuildKit is told about `name` of a folder, or about the folder itself (`.`), with the path left empty; and which
/// file it is when it has several names. The link target must be UTF-8, else there is nothing to tell.
pub(crate) fn stat(folder: impl AsFd, name: &CStr) -> io::Result<(Option<Stat>, Option<Identity>)> {
    let unix = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = mode::from_unix(unix.st_mode);
    let device = mode & mode::DEVICE != 0;
    let mut stat = Stat {
        mode,
        size: if mode & mode::FOLDER == 0 { unix.st_size } else { 0 },
        mod_time: nanoseconds(unix.st_mtime, unix.st_mtime_nsec),
        devmajor: if device { rustix::fs::major(unix.st_rdev).into() } else { 0 },
        devminor: if device { rustix::fs::minor(unix.st_rdev).into() } else { 0 },
        ..Stat::default()
    };
    if mode & mode::LINK != 0 {
        let target = rustix::fs::readlinkat(&folder, name, Vec::new())?;
        match target.into_string() {
            Ok(target) => stat.linkname = target,
            Err(_) => return Ok((None, None)),
        }
    } else {
        stat.xattrs = attributes(&folder, name)?;
    }
    let several = unix.st_nlink > 1 && mode & (mode::FOLDER | mode::LINK) == 0;
    Ok((Some(stat), several.then_some((unix.st_dev, unix.st_ino))))
}

/// Time of the last change in nanoseconds since 1970, as the protocol counts it.
pub(crate) fn modified(file: &File) -> io::Result<(u32, i64, i64)> {
    let unix = rustix::fs::fstat(file)?;
    Ok((mode::from_unix(unix.st_mode), unix.st_size, nanoseconds(unix.st_mtime, unix.st_mtime_nsec)))
}

fn nanoseconds(seconds: i64, nanoseconds: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanoseconds)
}

/// The attributes that belong to a file and not to the machine it lies on: `user.*` and file capabilities.
fn attributes(folder: impl AsFd, name: &CStr) -> io::Result<HashMap<String, Vec<u8>>> {
    // There is no call for a name in a folder; the descriptor's own name leads to just that folder.
    let mut path = format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut list = vec![0; MAX_ATTRIBUTE];
    let length = match rustix::fs::llistxattr(path.as_slice(), list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = HashMap::new();
    for key in list[..length].split(|byte| *byte == 0).filter_map(|key| std::str::from_utf8(key).ok()) {
        if key.starts_with("user.") || key == "security.capability" {
            let mut value = vec![0; MAX_ATTRIBUTE];
            // Not readable, or gone since: left out, as the model does.
            if let Ok(length) = rustix::fs::lgetxattr(path.as_slice(), key, value.as_mut_slice()) {
                value.truncate(length);
                found.insert(key.to_owned(), value);
            }
        }
    }
    Ok(found)
}
