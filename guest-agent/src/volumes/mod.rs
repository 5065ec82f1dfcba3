//! Folders that containers bind mount: tmpfs, plugged disks, and files that the host keeps in step with its own.

mod files;
mod merge;
mod tree;

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cloister_protocol::{limits, v1};
use rustix::mount::{MountFlags, mount};
use v1::mount_volume_request::Kind as Request;

use crate::error::{Context, Error, Kind, Result, lock};
use crate::rootfs::{disk_by_serial, release};
use files::Files;

/// Where volumes are; bind mounts of an OCI spec have their sources at or below one.
pub const VOLUMES: &str = "/run/cloister/volumes";

/// Mode of a volume's root when the host gives none: kubelet's for an emptyDir.
const MODE: u32 = 0o777;

/// The volumes of this guest.
#[derive(Default)]
pub struct Volumes {
    table: Mutex<HashMap<String, Slot>>,
}

/// A name is taken as soon as its volume is being mounted.
enum Slot {
    Mounting,
    Mounted,
    Files(Arc<Files>),
}

/// Who may do what with the root of a new volume.
#[derive(Clone, Copy)]
struct Access {
    mode: u32,
    gid: u32,
}

impl Volumes {
    /// Mounts a volume; gives its path. Blocks.
    ///
    /// # Errors
    /// When the request is malformed, the name is taken, or a disk does not appear or has no file system of ours.
    pub fn mount(&self, request: &v1::MountVolumeRequest) -> Result<PathBuf> {
        let path = self.reserve(&request.id)?;
        let mounted = make(request, &path);
        let mut table = lock(&self.table);
        match mounted {
            Ok(slot) => {
                table.insert(request.id.clone(), slot);
                Ok(path)
            }
            Err(error) => {
                table.remove(&request.id);
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<PathBuf> {
        if !limits::is_id(id) {
            return Err(Error::invalid(format!("{id:?} is no volume id")));
        }
        let mut table = lock(&self.table);
        if table.len() >= limits::VOLUMES {
            let most = limits::VOLUMES;
            return Err(Error::new(Kind::Exhausted, format!("the guest has {most} volumes already")));
        }
        if table.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("volume {id} is mounted already")));
        }
        table.insert(id.to_owned(), Slot::Mounting);
        Ok(Path::new(VOLUMES).join(id))
    }

    /// Unmounts a volume. Blocks.
    ///
    /// # Errors
    /// When there is none of that name; when something still uses it: it goes with its last user then.
    pub fn unmount(&self, id: &str) -> Result<()> {
        let slot = {
            let mut table = lock(&self.table);
            match table.remove(id) {
                Some(Slot::Mounting) => {
                    table.insert(id.to_owned(), Slot::Mounting);
                    return Err(Error::state(format!("volume {id} is being mounted")));
                }
                Some(slot) => slot,
                None => return Err(Error::state(format!("volume {id} is not mounted"))),
            }
        };
        let path = Path::new(VOLUMES).join(id);
        let released = release(&path);
        let _ = fs::remove_dir(&path);
        if let Slot::Files(files) = slot {
            files.release()?;
        }
        released
    }

    /// Makes the archive of a stream the content of a `files` volume. Blocks.
    ///
    /// # Errors
    /// When there is no such volume, or the archive is malformed or too large: the volume keeps what it had then.
    pub fn sync(&self, id: &str, stream: OwnedFd) -> Result<()> {
        let files = match lock(&self.table).get(id) {
            Some(Slot::Files(files)) => Arc::clone(files),
            _ => return Err(Error::state(format!("there is no volume {id:?} of files"))),
        };
        files.sync(stream)
    }
}

fn make(request: &v1::MountVolumeRequest, path: &Path) -> Result<Slot> {
    let access = access(request)?;
    fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
    match &request.kind {
        Some(Request::Memory(memory)) => {
            let size = if memory.bytes == 0 { "50%".to_owned() } else { memory.bytes.to_string() };
            let options = format!("size={size},mode={:o},gid={}", access.mode, access.gid);
            tmpfs(path, MountFlags::NODEV, &options)?;
            Ok(Slot::Mounted)
        }
        Some(Request::Disk(disk)) => {
            mount_disk(disk, path, access)?;
            Ok(Slot::Mounted)
        }
        Some(Request::Files(files)) => {
            Files::mount(&request.id, files.bytes, path, access).map(|files| Slot::Files(Arc::new(files)))
        }
        None => Err(Error::invalid(format!("volume {} is of no kind", request.id))),
    }
}

fn access(request: &v1::MountVolumeRequest) -> Result<Access> {
    if request.mode > 0o7777 {
        return Err(Error::invalid(format!("volume {} with mode {:o}", request.id, request.mode)));
    }
    Ok(Access { mode: if request.mode == 0 { MODE } else { request.mode }, gid: request.gid })
}

fn tmpfs(path: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let what = || format!("mount a tmpfs ({options}) on {}", path.display());
    let data = std::ffi::CString::new(options).context(what)?;
    mount("tmpfs", path, "tmpfs", flags, data.as_c_str()).context(what)
}

fn mount_disk(disk: &v1::DiskVolume, path: &Path, access: Access) -> Result<()> {
    if !limits::is_serial(&disk.serial) {
        return Err(Error::invalid(format!("{:?} is no disk serial", disk.serial)));
    }
    let node = disk_by_serial(&disk.serial)?;
    // The host gets back what is removed, as it counts what a volume takes.
    let (mut flags, mut options) = (MountFlags::NODEV, Some(c"discard"));
    if disk.read_only {
        (flags, options) = (flags | MountFlags::RDONLY, None);
    }
    let what = || format!("mount disk {} ({})", disk.serial, node.display());
    mount(&node, path, "ext4", flags, options).context(what)?;
    if disk.read_only {
        return Ok(());
    }
    let opened = open_new(path, access);
    if opened.is_err() {
        let _ = release(path);
    }
    opened
}

/// Gives an empty volume's root its mode and group; one with content has its own.
fn open_new(path: &Path, access: Access) -> Result<()> {
    let what = || format!("prepare the root of {}", path.display());
    if fs::read_dir(path).context(what)?.next().is_some() {
        return Ok(());
    }
    chown(path, Some(0), Some(access.gid)).context(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode)).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_never_leads_elsewhere() {
        let volumes = Volumes::default();
        for bad in ["", "..", "a/b", ".hidden"] {
            assert_eq!(volumes.reserve(bad).unwrap_err().kind, Kind::Invalid, "{bad:?}");
        }
        assert_eq!(volumes.reserve("data").unwrap(), Path::new("/run/cloister/volumes/data"));
        assert_eq!(volumes.reserve("data").unwrap_err().kind, Kind::Exists);
        assert_eq!(volumes.unmount("data").unwrap_err().kind, Kind::State);
        assert_eq!(volumes.unmount("other").unwrap_err().kind, Kind::State);
    }

    #[test]
    fn an_empty_root_gets_its_mode_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(folder.path()).unwrap().permissions().mode() & 0o7777;
        open_new(folder.path(), Access { mode: 0o2775, gid: 0 }).unwrap();
        assert_eq!(mode(), 0o2775);
        fs::write(folder.path().join("kept"), "").unwrap();
        open_new(folder.path(), Access { mode: 0o700, gid: 0 }).unwrap();
        assert_eq!(mode(), 0o2775);
    }
}
