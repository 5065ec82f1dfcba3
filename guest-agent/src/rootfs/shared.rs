//! A root that is a folder of the host, by virtiofs.

use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount_remount};

use super::SHARES;
use crate::error::{Context, Error, Result};
use crate::inroot::Root;
use crate::spec::{clone, split};

/// Shows the folder `source` of a share at `root`. Unlike other folders of a share it may have set-user-id programs:
/// they are the image's.
pub fn bind(source: &Path, root: &Path) -> Result<()> {
    let what = || format!("use {} as a root", source.display());
    let (share, below) = split(source)?;
    if !share.starts_with(SHARES) {
        return Err(Error::invalid(format!("{} is not on a share", source.display())));
    }
    fs::create_dir_all(root).context(what)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let folder = Root::open(&share)?.openat2(&below, flags, Mode::empty()).context(what)?;
    clone(&folder, root).context(what)?;
    mount_remount(root, MountFlags::BIND | MountFlags::NODEV, "").context(what)
}
