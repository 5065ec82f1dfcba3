//! A volume whose content the host keeps in step with files of its own.
//!
//! One tmpfs has two folders: what containers see, and a place where an archive is unpacked before any of it is shown.
//! Both are reached through one mount, so that what was unpacked can be renamed into view.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount_bind};

use super::{Access, merge, tmpfs, tree};
use crate::copy::{Bounds, import};
use crate::error::{Context, Error, Result, lock};
use crate::inroot::Root;
use crate::rootfs::release;

/// Where the file systems of these volumes are mounted; no container can bind them.
const PRIVATE: &str = "/run/cloister/files";

/// Most bytes such a volume may be asked to hold.
const LARGEST: u64 = 256 << 20;

/// Most entries of one archive.
const ENTRIES: usize = 16_384;

/// One such volume.
pub struct Files {
    /// The mount.
    private: PathBuf,
    bytes: u64,
    /// One synchronisation at a time.
    turn: Mutex<()>,
}

impl Files {
    /// Makes an empty volume and shows it at `path`.
    pub fn mount(id: &str, bytes: u64, path: &Path, access: Access) -> Result<Self> {
        if !(1..=LARGEST).contains(&bytes) {
            return Err(Error::invalid(format!("a volume of files with {bytes} bytes; at most {LARGEST}")));
        }
        let files = Self { private: Path::new(PRIVATE).join(id), bytes, turn: Mutex::default() };
        let made = files.make(path, access);
        if made.is_err() {
            let _ = release(path);
            let _ = files.release();
        }
        made.map(|()| files)
    }

    fn make(&self, path: &Path, access: Access) -> Result<()> {
        let what = || format!("make a volume of files at {}", path.display());
        fs::create_dir_all(&self.private).context(what)?;
        // The old content and the new one are there at once, each file rounded up to a page.
        let size = 2 * self.bytes + (1 << 20) + 2 * 4096 * ENTRIES as u64;
        let options = format!("size={size},nr_inodes={},mode=0700", 4 * ENTRIES);
        tmpfs(&self.private, MountFlags::NODEV | MountFlags::NOSUID, &options)?;
        let (content, staged) = (self.private.join("content"), self.private.join("staged"));
        for folder in [&content, &staged] {
            fs::create_dir(folder).context(what)?;
        }
        chown(&content, Some(0), Some(access.gid)).context(what)?;
        fs::set_permissions(&content, fs::Permissions::from_mode(access.mode)).context(what)?;
        mount_bind(&content, path).context(what)
    }

    /// Unpacks the archive of a stream out of sight, then makes it the content.
    pub fn sync(&self, stream: OwnedFd) -> Result<()> {
        let _turn = lock(&self.turn);
        let what = || "fill a volume".to_owned();
        let staged = self.open("staged")?;
        tree::clear(&staged).context(what)?; // what a failed synchronisation left
        let bounds = Bounds { bytes: self.bytes, entries: ENTRIES };
        import(&Root::open(&self.private.join("staged"))?, "/", stream, bounds)?;
        let merged = merge::replace(&self.open("content")?, &staged).context(what);
        let _ = tree::clear(&staged);
        merged
    }

    fn open(&self, folder: &str) -> Result<OwnedFd> {
        let path = self.private.join(folder);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(CWD, &path, flags, Mode::empty()).context(|| format!("open {}", path.display()))
    }

    /// Unmounts what [`Self::mount`] mounted besides the volume's own path.
    pub fn release(&self) -> Result<()> {
        let released = release(&self.private);
        let _ = fs::remove_dir(&self.private);
        released
    }
}
