//! The one folder that a pod's virtiofs daemon shows: whatever is to be shared is bind mounted below it.
//!
//! The folder is a shared mount inside the shim's private mount namespace, so a bind mount made later appears in the
//! daemon's namespace too, and all of them vanish with the shim. Each entry has a number for a name.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

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
    pub fn bind(&mut self, source: &Path, read_only: bool) -> Result<String> {
        let failed = || format!("cannot share {}", source.display());
        // Opened once, so that what is checked is what is bound; links are the host administrator's own.
        let opened =
            rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(failed)?;
        let is_folder =
            fs::metadata(format!("/proc/self/fd/{}", opened.as_raw_fd())).with_context(failed)?.is_dir();
        let name = self.name();
        let path = self.folder.join(&name);
        if is_folder {
            fs::create_dir(&path).with_context(failed)?;
        } else {
            fs::File::create_new(&path).with_context(failed)?;
        }
        let from = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let mount = || -> rustix::io::Result<()> {
            mount_bind_recursive(&from, &path)?;
            if read_only {
                mount_remount(&path, MountFlags::BIND | MountFlags::RDONLY, "")?;
            }
            Ok(())
        };
        if let Err(error) = mount() {
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
