//! The one folder that a pod's virtiofs daemon shows: whatever is to be shared is bind mounted below it.
//!
//! The folder is a shared mount inside the shim's private mount namespace, so a bind mount made later appears in the
//! daemon's namespace too, and all of them vanish with the shim. Each entry has a number for a name.
//!
//! What is bound is a copy of the host's mounts at and below the source. The shim's namespace receives what the host
//! mounts later; a copy does so only when it was asked for, because a file that the guest has in use there keeps the
//! host from unmounting it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_change, move_mount,
    open_tree, unmount,
};

/// What the guest may do with an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Nothing can be written.
    pub read_only: bool,
    /// Nor into other mounts below it.
    pub recursive: bool,
    /// What the host mounts below it later is seen.
    pub follow: bool,
}

/// The folder.
pub struct Staging {
    folder: PathBuf,
    next: u64,
}

impl Staging {
    /// Makes the folder; it must not exist.
    pub fn create(folder: PathBuf) -> Result<Self> {
        let failed = || format!("cannot prepare {}", folder.display());
        fs::create_dir(&folder).with_context(failed)?;
        mount_bind(&folder, &folder).with_context(failed)?;
        mount_change(&folder, MountPropagationFlags::SHARED).with_context(failed)?;
        Ok(Self { folder, next: 0 })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty folder below it and returns its name.
    pub fn folder_entry(&mut self) -> Result<String> {
        let name = self.name();
        let path = self.folder.join(&name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(name)
    }

    /// Binds a folder or file of the host below it and returns its name.
    pub fn bind(&mut self, source: &Path, access: Access) -> Result<String> {
        let failed = || format!("cannot share {}", source.display());
        // Opened once, so that what is checked is what is bound; links are the host administrator's own.
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, source, flags).with_context(failed)?;
        restrict(&tree, access).with_context(failed)?;
        let stat = rustix::fs::fstat(&tree).with_context(failed)?;
        let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        let name = self.name();
        let path = self.folder.join(&name);
        if is_folder {
            fs::create_dir(&path).with_context(failed)?;
        } else {
            fs::File::create_new(&path).with_context(failed)?;
        }
        if let Err(error) = move_mount(&tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
            self.remove(&name);
            return Err(error).with_context(failed);
        }
        Ok(name)
    }

    /// Takes an entry away.
    pub fn remove(&self, name: &str) {
        let path = self.folder.join(name);
        // More than one mount may lie over the other.
        while unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        let gone = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        if let Err(error) = gone {
            tracing::debug!(path = %path.display(), %error, "an entry of the shared folder stays");
        }
    }

    fn name(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }
}

/// Gives a copy of mounts the access, before anyone can reach it.
fn restrict(tree: &OwnedFd, access: Access) -> io::Result<()> {
    let read_only = if access.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(tree, read_only, 0, access.recursive)?;
    if access.follow { Ok(()) } else { set_attributes(tree, 0, libc::MS_PRIVATE, true) }
}

/// Sets attributes and propagation (0: as it is) of the first mount of a tree, or of all.
fn set_attributes(tree: &OwnedFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2) reads the empty path and a structure of the given size, both of which live here; the
    // descriptor is open.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
