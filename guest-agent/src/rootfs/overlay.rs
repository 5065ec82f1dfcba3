//! The root file system of a container: EROFS layers below, a writable folder above, joined by overlayfs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_protocol::{limits, v1};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::disk;
use crate::error::{Context, Error, Result};

/// How long the kernel may take to let go of a file system whose users are dead.
const RELEASE: Duration = Duration::from_secs(2);

/// What was mounted for one container; taken apart by [`Self::unmount`].
#[derive(Debug)]
pub struct Mounted {
    /// The merged root.
    pub root: PathBuf,
    /// Where the upper folder is: a scratch disk or a tmpfs.
    upper: PathBuf,
}

/// Stacks the root file system described by `rootfs` below `folder`, which is the container's own.
///
/// # Errors
/// When a disk does not appear or is not what it should be; nothing stays mounted then.
pub fn mount(folder: &Path, rootfs: &v1::Rootfs) -> Result<Mounted> {
    check(rootfs)?;
    let mounted = Mounted { root: folder.join("root"), upper: folder.join("upper") };
    let layers = folder.join("layers");
    let result = stack(&mounted, &layers, rootfs);
    // The overlay holds its own references to the layers: without their mount points, the mount table that each
    // container copies stays short.
    for layer in 1..=rootfs.layers {
        let _ = unmount(layers.join(layer.to_string()), UnmountFlags::DETACH);
    }
    match result {
        Ok(()) => Ok(mounted),
        Err(error) => {
            let _ = mounted.unmount();
            Err(error)
        }
    }
}

fn check(rootfs: &v1::Rootfs) -> Result<()> {
    if rootfs.layers > limits::LAYERS {
        let (layers, most) = (rootfs.layers, limits::LAYERS);
        return Err(Error::invalid(format!("a root of {layers} layers; at most {most} are possible")));
    }
    // An image without layers is an empty root and has no disk.
    for (serial, optional) in [(&rootfs.image_serial, rootfs.layers == 0), (&rootfs.scratch_serial, true)] {
        if !(limits::is_serial(serial) || optional && serial.is_empty()) {
            return Err(Error::invalid(format!("{serial:?} is no disk serial")));
        }
    }
    Ok(())
}

fn stack(mounted: &Mounted, layers: &Path, rootfs: &v1::Rootfs) -> Result<()> {
    for folder in [&mounted.root, &mounted.upper, &layers.to_path_buf()] {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    let nodes = match rootfs.layers {
        0 => Vec::new(),
        count => disk::partitions(&disk::by_serial(&rootfs.image_serial)?, count)?,
    };
    let mut lower = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let target = layers.join((index + 1).to_string());
        fs::create_dir(&target).context(|| format!("create {}", target.display()))?;
        let what =
            || format!("mount layer {} ({}) of disk {}", index + 1, node.display(), rootfs.image_serial);
        layer(node, &target).context(what)?;
        lower.push(target);
    }
    if lower.is_empty() {
        let empty = layers.join("empty"); // overlayfs wants a lower folder
        fs::create_dir(&empty).context(|| format!("create {}", empty.display()))?;
        lower.push(empty);
    }
    if rootfs.scratch_serial.is_empty() {
        let what = || "mount a tmpfs to write to".into();
        rustix::mount::mount("tmpfs", &mounted.upper, "tmpfs", MountFlags::empty(), c"mode=0755")
            .context(what)?;
    } else {
        let node = disk::by_serial(&rootfs.scratch_serial)?;
        let what = || format!("mount scratch disk {} ({})", rootfs.scratch_serial, node.display());
        rustix::mount::mount(&node, &mounted.upper, "ext4", MountFlags::NODEV, None).context(what)?;
    }
    let (upper, work) = (mounted.upper.join("upper"), mounted.upper.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    copy_root_attributes(lower.last().map_or(layers, PathBuf::as_path), &upper)?;
    let what = || format!("stack {} layers with overlayfs", rootfs.layers);
    let overlay = overlay(&lower, &upper, &work).context(what)?;
    attach(&overlay, &mounted.root).context(what)
}

/// One read-only layer. Device nodes in it are dead; set-user-id files are not.
fn layer(node: &Path, target: &Path) -> rustix::io::Result<()> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", node)?;
    fsconfig_set_flag(&fs, "ro")?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    attach(&fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?, target)
}

/// Layers come from images: redirects and metadata-only files that an image brings along are never followed
/// (`redirect_dir=nofollow`, `metacopy=off`; Documentation/filesystems/overlayfs.rst), so renaming a folder of a lower
/// layer gives EXDEV, as with other container runtimes.
fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "cloister")?;
    for layer in lower.iter().rev() {
        fsconfig_set_string(&fs, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&fs, "upperdir", upper)?;
    fsconfig_set_string(&fs, "workdir", work)?;
    for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
        fsconfig_set_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn attach(mount: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// overlayfs shows the upper folder's own owner, mode and times as those of `/`: they are the top layer's.
fn copy_root_attributes(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let what = || format!("copy the attributes of / from {}", from.display());
    let source = fs::metadata(from).context(what)?;
    chown(to, Some(source.uid()), Some(source.gid())).context(what)?;
    fs::set_permissions(to, fs::Permissions::from_mode(source.mode() & 0o7777)).context(what)?;
    let time = |seconds, nanos| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps {
        last_access: time(source.atime(), source.atime_nsec()),
        last_modification: time(source.mtime(), source.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, to, &times, rustix::fs::AtFlags::empty()).context(what)
}

impl Mounted {
    /// Takes the root apart; its users are dead.
    ///
    /// # Errors
    /// When something still holds it: it is detached then, and goes with its last user.
    pub fn unmount(&self) -> Result<()> {
        release(&self.root)?;
        release(&self.upper)
    }
}

/// Unmounts for real, so that a disk below can be unplugged. Mount namespaces of dead processes are taken apart a
/// moment after the last one was reaped.
fn release(target: &Path) -> Result<()> {
    let end = Instant::now() + RELEASE;
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => {
                let _ = unmount(target, UnmountFlags::DETACH);
                return Err(e).context(|| format!("unmount {}", target.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rootfs(image: &str, layers: u32, scratch: &str) -> v1::Rootfs {
        v1::Rootfs {
            image_serial: image.into(),
            layers,
            scratch_serial: scratch.into(),
            ..v1::Rootfs::default()
        }
    }

    #[test]
    fn impossible_roots_are_refused() {
        for good in [rootfs("img", 1, ""), rootfs("img", 128, "scratch"), rootfs("", 0, "")] {
            assert!(check(&good).is_ok(), "{good:?}");
        }
        for bad in [rootfs("", 1, ""), rootfs("img", 129, ""), rootfs("img", 1, "a/b")] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
