//! New disks that a guest may write to.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cloister_view::scratch;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::error::Error;

/// An empty file system on a disk of its own, which goes with the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// Its size; the host's disk is only taken as the guest writes.
    pub bytes: u64,
    /// Folder of the file system where its file is made.
    pub folder: PathBuf,
    /// The file's name, for whoever counts there what a guest has written. It has none without one, and none when that is on
    /// another file system.
    pub name: Option<PathBuf>,
}

impl Scratch {
    /// One whose file has no name.
    pub fn nameless(bytes: u64, folder: PathBuf) -> Self {
        Self { bytes, folder, name: None }
    }

    /// Makes it.
    pub(crate) async fn create(self) -> Result<OwnedFd, Error> {
        tokio::task::spawn_blocking(move || self.make()).await.map_err(|cause| Error::System {
            what: "make the scratch disk",
            cause: std::io::Error::other(cause),
        })?
    }

    fn make(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.folder, flags, Mode::RUSR | Mode::WUSR);
        let fd = fd.map_err(|errno| Error::File {
            what: "make a disk in",
            path: self.folder.clone(),
            cause: errno.into(),
        })?;
        let file = File::from(fd);
        scratch::create(&file, self.bytes).map_err(Error::Disk)?;
        if let Some(name) = &self.name
            && let Err(error) = publish(&file, name)
        {
            tracing::debug!(name = %name.display(), %error, "what is on a disk of the guest will not be counted");
        }
        Ok(file.into())
    }
}

/// Gives a nameless file a name, which an earlier one may have had.
fn publish(file: &File, name: &Path) -> std::io::Result<()> {
    let _ = std::fs::remove_file(name);
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, own, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_disk_has_the_name_that_it_is_given_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("disk");
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let nameless = Scratch::nameless(64 << 20, folder.path().to_owned());
        nameless.clone().create().await.unwrap();
        assert_eq!(names(), 0);
        for _ in 0..2 {
            let disk = Scratch { name: Some(name.clone()), ..nameless.clone() };
            let file = File::from(disk.create().await.unwrap());
            let (seen, own) = (name.metadata().unwrap(), file.metadata().unwrap());
            assert_eq!((seen.ino(), seen.len(), names()), (own.ino(), 64 << 20, 1));
            assert!(seen.blocks() * 512 < 8 << 20, "{} blocks", seen.blocks());
        }
        let elsewhere = Scratch { name: Some("/proc/disk".into()), ..nameless };
        elsewhere.create().await.unwrap();
    }
}
