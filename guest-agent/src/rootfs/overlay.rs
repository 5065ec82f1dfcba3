//! The root file system of a container: EROFS layers below, a writable folder above, joined by overlayfs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cloister_protocol::v1;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::{Mounted, attributes, disk};
use crate::error::{Context, Result};

/// Stacks the root file system described by `rootfs`; `layers` is a place for its layers meanwhile.
pub fn stack(mounted: &Mounted, layers: &Path, rootfs: &v1::Rootfs) -> Result<()> {
    let result = join(mounted, layers, rootfs);
    // The overlay holds its own references to the layers: without their mount points, the mount table that each
    // container copies stays short.
    for layer in 1..=rootfs.layers {
        let _ = unmount(layers.join(layer.to_string()), UnmountFlags::DETACH);
    }
    result
}

fn join(mounted: &Mounted, layers: &Path, rootfs: &v1::Rootfs) -> Result<()> {
    for folder in [&mounted.root, &mounted.upper, &layers.to_path_buf()] {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    let lower = lower(layers, rootfs)?;
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
    attributes::copy(lower.first().map_or(layers, PathBuf::as_path), &upper)?;
    let what = || format!("stack {} layers with overlayfs", rootfs.layers);
    let overlay = overlay(&lower, &upper, &work).context(what)?;
    attach(&overlay, &mounted.root).context(what)
}

/// Mounts the layers, highest first, down to one that hides those below it.
fn lower(layers: &Path, rootfs: &v1::Rootfs) -> Result<Vec<PathBuf>> {
    let mut lower = Vec::new();
    if rootfs.layers == 0 {
        let empty = layers.join("empty"); // overlayfs wants a lower folder
        fs::create_dir(&empty).context(|| format!("create {}", empty.display()))?;
        return Ok(vec![empty]);
    }
    let nodes = disk::partitions(&disk::by_serial(&rootfs.image_serial)?, rootfs.layers)?;
    for (index, node) in nodes.iter().enumerate().rev() {
        let number = index + 1;
        let target = layers.join(number.to_string());
        fs::create_dir(&target).context(|| format!("create {}", target.display()))?;
        let what = || format!("mount layer {number} ({}) of disk {}", node.display(), rootfs.image_serial);
        layer(node, &target).context(what)?;
        let last = attributes::is_opaque(&target)?;
        lower.push(target);
        if last {
            break;
        }
    }
    Ok(lower)
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
    for layer in lower {
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
