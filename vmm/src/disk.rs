//! Disks a VM can be given. Every one arrives as an open descriptor and with its format named.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, open};

use crate::{Error, Result};

/// Bytes per sector: everything on a disk is a multiple of this.
pub const SECTOR: u64 = 512;
/// Most pieces one image disk is made of (128 partitions and the two ends of the partition table).
pub const MAX_EXTENTS: usize = 130;
/// virtio-blk gives the guest this many bytes of serial number.
const MAX_SERIAL: usize = 20;

/// A consecutive piece of a file.
#[derive(Debug)]
pub struct Extent {
    /// A regular file or memfd; is reopened read-only before QEMU sees it.
    pub file: OwnedFd,
    /// Where the piece starts in the file: bytes, a multiple of 512.
    pub offset: u64,
    /// Its length: bytes, a multiple of 512, not beyond the end of the file.
    pub len: u64,
}

/// A read-only disk made of pieces of files, one after the other, as ONE device.
#[derive(Debug)]
pub struct ImageDisk {
    /// What the guest finds the disk by (`/sys/block/*/serial`): at most 20 letters, digits, `-`, `_`, `.`.
    pub serial: String,
    /// 1 to 130 pieces.
    pub extents: Vec<Extent>,
}

/// One raw file or block device.
#[derive(Debug)]
pub struct RawDisk {
    /// As for [`ImageDisk`].
    pub serial: String,
    /// Opened read-write unless `read_only`. Must be a regular file or a block device.
    pub file: OwnedFd,
    /// The guest cannot write.
    pub read_only: bool,
    /// The content dies with the VM: the guest's flushes need not reach the host's disk.
    pub ephemeral: bool,
}

pub(crate) fn check_serial(serial: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if serial.is_empty() || serial.len() > MAX_SERIAL || !serial.chars().all(good) {
        return Err(Error::invalid(
            format!("disk serial {serial:?}"),
            "must be 1 to 20 letters, digits, '-', '_' or '.'",
        ));
    }
    Ok(())
}

impl ImageDisk {
    /// Checks the pieces against their files, so that a short file is an error now and not zeros in the guest.
    pub(crate) fn check(&self) -> Result<()> {
        check_serial(&self.serial)?;
        let what = || format!("image disk {}", self.serial);
        if self.extents.is_empty() || self.extents.len() > MAX_EXTENTS {
            return Err(Error::invalid(
                what(),
                format!("{} pieces is not in 1..={MAX_EXTENTS}", self.extents.len()),
            ));
        }
        for (n, extent) in self.extents.iter().enumerate() {
            let stat = fstat(&extent.file).map_err(Error::errno("stat a piece of an image disk"))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Error::invalid(what(), format!("piece {n} is not a regular file")));
            }
            if extent.len == 0 || extent.len % SECTOR != 0 || extent.offset % SECTOR != 0 {
                return Err(Error::invalid(what(), format!("piece {n} is not made of whole sectors")));
            }
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if extent.offset.checked_add(extent.len).is_none_or(|end| end > size) {
                return Err(Error::invalid(
                    what(),
                    format!("piece {n} ends beyond its file of {size} bytes"),
                ));
            }
        }
        Ok(())
    }
}

/// A VMDK descriptor that strings flat files together (VMware "Virtual Disk Format 5.0", section "The
/// Disk Descriptor File"). `paths` are in the order of the extents and hold no quotes.
///
/// There is deliberately no blank line before the first extent: QEMU's parser counts it twice then.
pub(crate) fn descriptor(extents: &[Extent], paths: &[String]) -> String {
    use std::fmt::Write;

    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n",
    );
    for (extent, path) in extents.iter().zip(paths) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "RW {} FLAT \"{path}\" {}", extent.len / SECTOR, extent.offset / SECTOR);
    }
    text
}

/// The same file, opened read-only: QEMU must not get a descriptor it could write through.
pub(crate) fn read_only(file: &OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;

    let flags = fcntl_getfl(file).map_err(Error::errno("inspect a disk's descriptor"))?;
    if flags & OFlags::ACCMODE == OFlags::RDONLY {
        return file.try_clone().map_err(Error::os("duplicate a disk's descriptor"));
    }
    open(format!("/proc/self/fd/{}", file.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::errno("reopen a disk's file read-only"))
}

/// QEMU's protocol driver for a raw disk's file; nothing else is accepted.
pub(crate) fn protocol_driver(disk: &RawDisk) -> Result<&'static str> {
    let what = || format!("disk {}", disk.serial);
    let stat = fstat(&disk.file).map_err(Error::errno("stat a disk"))?;
    let flags = fcntl_getfl(&disk.file).map_err(Error::errno("inspect a disk's descriptor"))?;
    if !disk.read_only && flags & OFlags::ACCMODE != OFlags::RDWR {
        return Err(Error::invalid(what(), "is writable but not opened read-write"));
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok("file"),
        FileType::BlockDevice => Ok("host_device"),
        _ => Err(Error::invalid(what(), "is neither a regular file nor a block device")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn extent(bytes: usize, offset: u64, len: u64) -> Extent {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; bytes]).unwrap();
        Extent { file: file.into(), offset, len }
    }

    fn disk(extents: Vec<Extent>) -> ImageDisk {
        ImageDisk { serial: "image0".into(), extents }
    }

    #[test]
    fn the_descriptor_counts_sectors_and_has_no_blank_line() {
        let extents = [extent(4096, 0, 1024), extent(4096, 512, 2048)];
        let text = descriptor(&extents, &["/dev/fdset/3".into(), "/dev/fdset/4".into()]);
        assert!(text.ends_with("RW 2 FLAT \"/dev/fdset/3\" 0\nRW 4 FLAT \"/dev/fdset/4\" 1\n"), "{text}");
        assert!(!text.contains("\n\n"));
    }

    #[test]
    fn pieces_must_be_whole_sectors_inside_regular_files() {
        assert!(disk(vec![extent(1024, 512, 512)]).check().is_ok());
        assert!(disk(vec![]).check().is_err());
        assert!(disk(vec![extent(1024, 512, 1024)]).check().unwrap_err().to_string().contains("beyond"));
        assert!(disk(vec![extent(1024, 1, 512)]).check().unwrap_err().to_string().contains("whole sectors"));
        assert!(disk(vec![extent(1024, 512, u64::MAX - 511)]).check().is_err());
        assert!(disk((0..131).map(|_| extent(512, 0, 512)).collect()).check().is_err());
        let folder = Extent { file: File::open("/").unwrap().into(), offset: 0, len: 512 };
        assert!(disk(vec![folder]).check().unwrap_err().to_string().contains("regular"));
    }

    #[test]
    fn serials_that_a_command_could_misread_are_refused() {
        for bad in ["", "a,b=c", "a b", "123456789012345678901", "a\n"] {
            assert!(check_serial(bad).is_err(), "{bad:?}");
        }
        assert!(check_serial("scratch-0_a.b").is_ok());
    }

    #[test]
    fn a_writable_memfd_is_handed_over_read_only() {
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let ro = read_only(&memfd).unwrap();
        assert_eq!(fcntl_getfl(&ro).unwrap() & OFlags::ACCMODE, OFlags::RDONLY);
        assert!(rustix::io::write(&ro, b"x").is_err());
    }

    #[test]
    fn a_read_only_descriptor_cannot_become_a_writable_disk() {
        let file = File::open("/proc/self/exe").unwrap();
        let disk = RawDisk { serial: "s".into(), file: file.into(), read_only: false, ephemeral: false };
        assert!(protocol_driver(&disk).unwrap_err().to_string().contains("read-write"));
        let (a, _b) = rustix::pipe::pipe().unwrap();
        let disk = RawDisk { serial: "s".into(), file: a, read_only: true, ephemeral: false };
        assert!(protocol_driver(&disk).is_err());
    }
}
