//! The root file system of a container, from what the host plugged: disks of layers, scratch disks, shares.

mod attributes;
mod disk;
mod overlay;
mod share;
mod shared;
mod uevent;
mod unmount;

use std::path::{Path, PathBuf};

use cloister_protocol::{limits, v1};

pub use disk::by_serial as disk_by_serial;
pub use share::{SHARES, Shares};
pub use uevent::wait_for;
pub use unmount::release;

use crate::error::{Error, Result};

/// What was mounted for one container; taken apart by [`Self::unmount`].
#[derive(Debug)]
pub struct Mounted {
    /// The root as the container sees it.
    pub root: PathBuf,
    /// Where what it writes is: a scratch disk or a tmpfs, nothing for a root on a share.
    upper: PathBuf,
}

/// Makes the root file system described by `rootfs` below `folder`, which is the container's own.
///
/// # Errors
/// When a disk does not appear or is not what it should be; nothing stays mounted then.
pub fn mount(folder: &Path, rootfs: &v1::Rootfs) -> Result<Mounted> {
    check(rootfs)?;
    let mounted = Mounted { root: folder.join("root"), upper: folder.join("upper") };
    let result = if rootfs.share_path.is_empty() {
        overlay::stack(&mounted, &folder.join("layers"), rootfs)
    } else {
        shared::bind(Path::new(&rootfs.share_path), &mounted.root)
    };
    if let Err(error) = result {
        let _ = mounted.unmount();
        return Err(error);
    }
    Ok(mounted)
}

fn check(rootfs: &v1::Rootfs) -> Result<()> {
    if !rootfs.share_path.is_empty() {
        let alone = rootfs.layers == 0 && rootfs.image_serial.is_empty() && rootfs.scratch_serial.is_empty();
        if !alone || rootfs.share_path.len() > limits::PATH_BYTES {
            return Err(Error::invalid("a root on a share has no disks, and a path of at most 4096 bytes"));
        }
        return Ok(());
    }
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

impl Mounted {
    /// Takes the root apart; its users are dead.
    ///
    /// # Errors
    /// When something still holds it: it is detached then, and goes with its last user.
    pub fn unmount(&self) -> Result<()> {
        release(&self.root)?;
        release(&self.upper)
    }

    /// Bytes and inodes in use where the container writes; nothing for a root on a share.
    pub fn usage(&self) -> (u64, u64) {
        match rustix::fs::statvfs(&self.upper) {
            Ok(stat) if self.upper.exists() => (
                stat.f_frsize.saturating_mul(stat.f_blocks.saturating_sub(stat.f_bfree)),
                stat.f_files.saturating_sub(stat.f_ffree),
            ),
            _ => (0, 0),
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
        let on_share = v1::Rootfs { share_path: "/run/cloister/shares/t".into(), ..v1::Rootfs::default() };
        for good in [rootfs("img", 1, ""), rootfs("img", 128, "scratch"), rootfs("", 0, ""), on_share.clone()]
        {
            assert!(check(&good).is_ok(), "{good:?}");
        }
        let both = v1::Rootfs { share_path: on_share.share_path, ..rootfs("img", 1, "") };
        for bad in [rootfs("", 1, ""), rootfs("img", 129, ""), rootfs("img", 1, "a/b"), both] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
