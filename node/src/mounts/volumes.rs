//! What an image has in the folders it declares as volumes, copied out by our own reader.
//!
//! The CRI gives a container a folder of the host for each of them and fills it with the image's contents. Only folders made
//! here are ever entered, nothing that exists is replaced, and symlinks are made last-component only: whatever the image holds,
//! everything lands below the target.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cloister_view::merged::{Merged, Node};
use rustix::fs::XattrFlags;

use super::path;
use crate::error::{Error, IoContext, Result};

/// Most volumes of one image.
const MAX_VOLUMES: usize = 64;
/// Most bytes, and most names, of all volumes of an image; contents of a volume that is larger are left out.
const MAX_BYTES: u64 = 1 << 30;
const MAX_ENTRIES: u64 = 100_000;
/// Bytes copied at once.
const BUFFER: usize = 256 << 10;

/// What may still be copied.
struct Budget {
    bytes: u64,
    entries: u64,
}

/// Copies the contents of `volumes` (absolute paths) below `to`. A volume that cannot be copied stays empty, with a warning.
pub fn copy(merged: &Merged, volumes: &[String], to: &Path) {
    let mut budget = Budget { bytes: MAX_BYTES, entries: MAX_ENTRIES };
    let mut done: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut paths: Vec<Vec<Vec<u8>>> = volumes.iter().map(|volume| names(volume)).collect();
    paths.sort();
    for volume in paths.into_iter().take(MAX_VOLUMES) {
        // The root is no volume; one inside another is copied with that.
        let odd = volume.is_empty() || volume.iter().any(|name| name == b"..");
        if odd || done.iter().any(|outer| volume.starts_with(outer)) {
            continue;
        }
        if let Err(error) = copy_one(merged, &volume, to, &mut budget) {
            let volume = String::from_utf8_lossy(&volume.join(&b'/')).into_owned();
            tracing::warn!(volume, %error, "the image's contents of a volume are left out");
        }
        done.push(volume);
    }
}

/// The names of a path, first first.
fn names(volume: &str) -> Vec<Vec<u8>> {
    let mut names = path::split(volume.as_bytes());
    names.reverse();
    names
}

fn copy_one(merged: &Merged, volume: &[Vec<u8>], to: &Path, budget: &mut Budget) -> Result<()> {
    let Some(root) = path::find(merged, &volume.join(&b'/'))?.filter(Node::is_dir) else { return Ok(()) };
    let mut at = to.to_owned();
    for name in volume {
        at.push(OsStr::from_bytes(name));
        match DirBuilder::new().create(&at) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Ours, and a folder: made for another volume or for the account files.
                if !at.symlink_metadata().at("read", &at)?.is_dir() {
                    return Err(Error::Invalid("it is below a file".into()));
                }
            }
            result => result.at("make", &at)?,
        }
    }
    let mut ahead = vec![(at.clone(), root.clone())];
    let mut folders = Vec::new();
    while let Some((path, node)) = ahead.pop() {
        for child in merged.children(&node)? {
            let child = child?;
            budget.entries = budget.entries.checked_sub(1).ok_or_else(too_large)?;
            let path = path.join(file_name(&child.name)?);
            if child.node.is_dir() {
                match DirBuilder::new().create(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    result => result.at("make", &path)?,
                }
                ahead.push((path, child.node));
            } else if child.node.is_file() {
                copy_file(merged, &child.node, &path, budget)?;
            } else if child.node.is_symlink() {
                let target = merged.link_target(&child.node)?;
                match std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    result => result.at("make", &path)?,
                }
                let meta = child.node.meta();
                std::os::unix::fs::lchown(&path, Some(meta.uid), Some(meta.gid))
                    .at("change the owner of", &path)?;
            }
            // Devices, pipes and sockets mean nothing on the host.
        }
        folders.push((path, node));
    }
    // Inner ones first, so that none is closed before it is filled.
    for (path, node) in folders.iter().rev() {
        let dir = File::open(path).at("open", path)?;
        attributes(merged, node, &dir, path)?;
    }
    Ok(())
}

fn copy_file(merged: &Merged, node: &Node, path: &Path, budget: &mut Budget) -> Result<()> {
    budget.bytes = budget.bytes.checked_sub(node.meta().size).ok_or_else(too_large)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result.at("create", path)?,
    };
    let (image, inode) = (merged.image(node), node.inode());
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    loop {
        let n = image.read_at(&inode, offset, &mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).at("write", path)?;
        offset += n as u64;
    }
    attributes(merged, node, &file, path)
}

/// Owner first: changing it clears what the others set.
fn attributes(merged: &Merged, node: &Node, file: &File, path: &Path) -> Result<()> {
    let meta = node.meta();
    std::os::unix::fs::fchown(file, Some(meta.uid), Some(meta.gid)).at("change the owner of", path)?;
    for xattr in merged.xattrs(node)? {
        let name = OsStr::from_bytes(&xattr.name);
        match rustix::fs::fsetxattr(file, name, &xattr.value, XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
            Err(errno) => return Err(errno).at("set an attribute of", path),
        }
    }
    file.set_permissions(Permissions::from_mode(meta.mode & 0o7777)).at("change the mode of", path)?;
    let time = rustix::fs::Timespec { tv_sec: meta.mtime, tv_nsec: meta.mtime_nsec.into() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::futimens(file, &times).at("change the time of", path)
}

fn file_name(name: &[u8]) -> Result<PathBuf> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("the image has a file name that is none".into()));
    }
    Ok(OsStr::from_bytes(name).into())
}

fn too_large() -> Error {
    Error::Invalid(format!("more than {MAX_BYTES} bytes or {MAX_ENTRIES} names"))
}
