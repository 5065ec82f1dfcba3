//! Where the bind mounts of a spec come from.
//!
//! Only what the host put into the guest can be bound. What is below such a folder may have been written by containers,
//! so a path there is resolved by the agent, inside its folder, and bound at a place that no container can change;
//! the runtime sees only that place.

use std::fs;
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::error::{Context, Error, Result};
use crate::inroot::Root;
use crate::pod::SHM;
use crate::rootfs::SHARES;
use crate::volumes::VOLUMES;

/// Sources bound for the runtime while it makes a container; they go when this does.
pub struct Staged {
    places: Vec<PathBuf>,
}

/// Refuses bind mounts of anything else in the guest.
pub(super) fn check(spec: &Spec) -> Result<()> {
    spec.mounts().iter().flatten().filter_map(bound).try_for_each(|source| split(source).map(drop))
}

/// The source of a bind mount.
fn bound(mount: &Mount) -> Option<&Path> {
    let bind = |option: &String| option == "bind" || option == "rbind";
    let is = mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind);
    mount.source().as_deref().filter(|_| is)
}

/// The folder that the host put into the guest, and the path below it.
pub fn split(source: &Path) -> Result<(PathBuf, PathBuf)> {
    let plain = source.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain && source == Path::new(SHM) {
        return Ok((source.to_owned(), PathBuf::new()));
    }
    for folder in [SHARES, VOLUMES] {
        let Ok(below) = source.strip_prefix(folder) else { continue };
        let mut parts = below.components();
        if let Some(name) = parts.next().filter(|_| plain) {
            return Ok((Path::new(folder).join(name), parts.as_path().to_owned()));
        }
    }
    Err(Error::invalid(format!(
        "bind mount of {}: only files and folders below {SHARES} and {VOLUMES}, and {SHM}, can be bound",
        source.display()
    )))
}

/// Resolves the sources and puts in their place where they are bound, below `folder`.
pub fn stage(spec: &mut Spec, folder: &Path) -> Result<Staged> {
    let mut staged = Staged { places: Vec::new() };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let Some(source) = bound(mount) else { continue };
        let (top, below) = split(source)?;
        if below.as_os_str().is_empty() {
            continue; // no container can change what is at the top
        }
        let place = folder.join(format!("bind{}", staged.places.len()));
        place_at(&top, &below, &place, &mut staged)?;
        mount.set_source(Some(place));
    }
    spec.set_mounts(Some(mounts));
    Ok(staged)
}

fn place_at(top: &Path, below: &Path, place: &Path, staged: &mut Staged) -> Result<()> {
    let what = || format!("bind {}", top.join(below).display());
    let root = Root::open(top)?;
    let found = match open(&root, below) {
        // kubelet makes what a subPath of an empty volume names, but only in the host's own folder.
        Err(Errno::NOENT) if top.starts_with(VOLUMES) => {
            root.create_dir_like_root(below)?;
            open(&root, below)
        }
        other => other,
    };
    let (found, folder) = found.context(what)?;
    if folder {
        fs::create_dir(place).context(what)?;
    } else {
        fs::write(place, "").context(what)?;
    }
    staged.places.push(place.to_owned());
    clone(&found, place).context(what)
}

/// Opens what is at a path, and says whether it is a folder; sockets are not bound.
fn open(root: &Root, path: &Path) -> rustix::io::Result<(std::os::fd::OwnedFd, bool)> {
    // As a folder first: that is what makes the kernel mount a folder that is a mount of the host's, too.
    match root.openat2(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        Ok(folder) => Ok((folder, true)),
        Err(Errno::NOTDIR) => Ok((root.openat2(path, OFlags::PATH, Mode::empty())?, false)),
        Err(e) => Err(e),
    }
}

/// Attaches a copy of a mount, or of a part of it, at a place.
pub fn clone(found: &std::os::fd::OwnedFd, place: &Path) -> rustix::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(found, "", flags)?;
    move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

impl Drop for Staged {
    fn drop(&mut self) {
        for place in &self.places {
            let _ = unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            // One of the two fits.
            let _ = fs::remove_dir(place);
            let _ = fs::remove_file(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_host_put_there_can_be_bound() {
        let ok = |source: &str| {
            split(Path::new(source))
                .map(|(top, below)| (top.display().to_string(), below.display().to_string()))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(ok("/run/cloister/shares/t").unwrap(), pair("/run/cloister/shares/t", ""));
        assert_eq!(ok("/run/cloister/volumes/v/a/b").unwrap(), pair("/run/cloister/volumes/v", "a/b"));
        assert_eq!(ok(SHM).unwrap(), pair(SHM, ""));
        for source in [
            "/",
            "/dev",
            "/run/cloister/shares",
            "/run/cloister/shares/../c",
            "/run/cloister/sharesx/a",
            "/run/cloister/volumes",
            "/run/cloister/shm/x",
            "/run/cloister/containers/1",
            "/run/cloister/files/x",
            "run/cloister/volumes/v",
        ] {
            assert!(ok(source).is_err(), "{source}");
        }
    }
}
