//! The last page of a pod that ends: without it, what happened since the last collection would be lost, the reason of
//! the end with it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::Counted;

/// Most pages that wait for `cloister-node`; further ones are not written.
const WAITING: usize = 256;

/// Leaves the counters of a pod at `path`, whose folder is made.
///
/// # Errors
/// When they can't be written.
pub fn leave(path: &Path, counted: &Counted) -> Result<()> {
    let leave = || -> Result<()> {
        let folder = path.parent().context("it is in no folder")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        if fs::read_dir(folder)?.count() >= WAITING {
            tracing::debug!("nobody collects metrics");
            return Ok(());
        }
        // Without a name until it is whole, so that a shim that is killed leaves nothing.
        let file =
            rustix::fs::openat(CWD, folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR)?;
        let mut file = File::from(file);
        file.write_all(&counted.encode()?)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    };
    leave().with_context(|| format!("cannot leave the pod's last figures in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_wait_in_a_bounded_number() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("ended");
        let counted = Counted::new().unwrap();
        for id in 0..WAITING + 3 {
            leave(&folder.join(format!("k8s.io.{id}")), &counted).unwrap();
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), WAITING);
        assert!(fs::read_to_string(folder.join("k8s.io.7")).unwrap().contains("cloister_pod_"));
    }
}
