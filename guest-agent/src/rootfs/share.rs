//! Folders of the host, by virtiofs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cloister_protocol::limits;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::uevent::wait_for;
use crate::error::{Context, Error, Kind, Result, lock};

/// Where shares are mounted; bind mounts of an OCI spec have their sources below.
pub const SHARES: &str = "/run/cloister/shares";

/// The shares that are mounted.
#[derive(Default)]
pub struct Shares {
    mounted: Mutex<HashSet<String>>,
}

impl Shares {
    /// Mounts a share, waiting for its device to be plugged; gives its path in the guest.
    ///
    /// # Errors
    /// When it does not appear in time, or is mounted already.
    pub fn mount(&self, tag: &str, read_only: bool) -> Result<PathBuf> {
        let path = path(tag)?;
        if !lock(&self.mounted).insert(tag.to_owned()) {
            return Err(Error::new(Kind::Exists, format!("share {tag} is mounted already")));
        }
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
        if read_only {
            flags |= MountFlags::RDONLY;
        }
        let result =
            std::fs::create_dir_all(&path).context(|| format!("create {}", path.display())).and_then(|()| {
                wait_for(&format!("share {tag:?}"), || match mount(tag, &path, "virtiofs", flags, None) {
                    Ok(()) => Ok(Some(())),
                    Err(Errno::INVAL) => Ok(None), // what the kernel says to a tag that no device has
                    Err(e) => Err(e).context(|| format!("mount share {tag}")),
                })
            });
        if result.is_err() {
            lock(&self.mounted).remove(tag);
        }
        result.map(|()| path)
    }

    /// Unmounts a share.
    ///
    /// # Errors
    /// When it is in use or not mounted.
    pub fn unmount(&self, tag: &str) -> Result<()> {
        let path = path(tag)?;
        let mut mounted = lock(&self.mounted);
        if !mounted.contains(tag) {
            return Err(Error::state(format!("share {tag} is not mounted")));
        }
        unmount(&path, UnmountFlags::NOFOLLOW).context(|| format!("unmount share {tag}"))?;
        mounted.remove(tag);
        Ok(())
    }
}

fn path(tag: &str) -> Result<PathBuf> {
    if limits::is_tag(tag) {
        Ok(Path::new(SHARES).join(tag))
    } else {
        Err(Error::invalid(format!("{tag:?} is no share tag")))
    }
}
