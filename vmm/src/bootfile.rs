//! Kernel and initramfs, which QEMU keeps mapped as long as it lives though nobody reads them after the boot.
//!
//! QEMU is given copies in memory, whose pages are freed once the guest answers: they would be 20 MiB of every VM. A VM
//! never starts a second time (`-no-reboot`), so what is left, zeros, is never used.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create, sendfile};

use crate::{Error, Result};

/// A copy of a file of the host, in memory.
#[derive(Debug)]
pub(crate) struct BootFile(OwnedFd);

impl BootFile {
    /// Copies the file at `path`; `what` names it in errors. Blocks for some milliseconds.
    pub fn read(what: &'static str, path: &Path) -> Result<Self> {
        copy(path).map(Self).map_err(|source| Error::File { what, path: path.to_owned(), source })
    }

    /// The descriptor to hand to QEMU.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.0.try_clone().map_err(Error::os("duplicate a boot file's descriptor"))
    }

    /// Frees the pages in every process that has the file mapped.
    pub fn release(self) -> Result<()> {
        let free = || {
            let size = u64::try_from(fstat(&self.0)?.st_size).unwrap_or_default();
            fallocate(&self.0, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, size)
        };
        free().map_err(Error::errno("free a boot file"))
    }
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let from = File::open(path)?;
    let to = memfd_create("boot-file", MemfdFlags::CLOEXEC)?;
    let mut left = from.metadata()?.len();
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX);
        match sendfile(&to, &from, None, step)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved => left = left.saturating_sub(moved as u64),
        }
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn a_copy_is_equal_until_it_is_released() {
        let mut original = tempfile::NamedTempFile::new().unwrap();
        let content = vec![7; 3 << 20];
        std::io::Write::write_all(&mut original, &content).unwrap();
        let file = BootFile::read("kernel", original.path()).unwrap();
        let mut held = File::from(file.duplicate().unwrap());
        held.rewind().unwrap();
        let mut seen = Vec::new();
        held.read_to_end(&mut seen).unwrap();
        assert!(seen == content);
        file.release().unwrap();
        use std::os::unix::fs::MetadataExt;
        let after = held.metadata().unwrap();
        assert_eq!((after.len(), after.blocks()), (3 << 20, 0));
    }
}
