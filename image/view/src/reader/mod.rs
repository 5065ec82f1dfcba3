//! Reads EROFS files without mounting them: ours, and uncompressed ones from `mkfs.erofs`.
//!
//! Source: `fs/erofs/erofs_fs.h` and the readers beside it (Linux 6.12); structures come from
//! [`cloister_layer::erofs::format`]. Supported: block sizes 512 to 4096, compact and extended inodes, flat, inline
//! and chunk-based data on one device, inline and shared attributes. Everything else is refused by name.
//!
//! The file is not trusted. Every position is checked against the file's length before it is read, names against
//! what a directory may hold, and nothing is read whole: memory is one directory block, one window of a chunk map,
//! or one inode's attributes (at most 16 MiB) at a time. The reader follows no chain of its own, so a cycle can
//! only come from directories; [`crate::merged`] refuses those.

mod data;
mod dir;
mod xattr;

use std::fs::File;
use std::os::unix::fs::FileExt;

use cloister_layer::erofs::format::{self, SLOT_SIZE, SUPER_OFFSET, SUPER_SIZE, SuperBlock};

pub use data::{Run, Runs};
pub use dir::{Dir, DirEntry};
pub use xattr::Xattr;

use crate::error::{Error, Result};

/// LZ4 zero padding: set by some tools even when nothing is compressed; says nothing about uncompressed files.
const INCOMPAT_ZERO_PADDING: u32 = 0x1;
const KNOWN_INCOMPAT: u32 = INCOMPAT_ZERO_PADDING | format::INCOMPAT_CHUNKED_FILE;

/// An open EROFS file.
#[derive(Debug)]
pub struct Image {
    file: File,
    name: String,
    /// Bytes of the file.
    len: u64,
    sb: SuperBlock,
}

/// An inode that was read and checked.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Its number: distance from the metadata start in slots of 32 bytes.
    pub nid: u64,
    raw: format::Inode,
    /// Byte position of the attribute area.
    xattrs: u64,
    /// Byte position behind the attributes: inline data or the chunk map.
    body: u64,
}

/// What `stat` says about an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; for directories the size on disk.
    pub size: u64,
    /// Seconds since 1970, negative before.
    pub mtime: i64,
    /// Nanoseconds below 10⁹.
    pub mtime_nsec: u32,
    /// Names of this inode in its file.
    pub nlink: u32,
    /// Device major and minor for device nodes, else zeros.
    pub rdev: (u32, u32),
}

impl Inode {
    /// What `stat` says.
    pub fn meta(&self) -> Meta {
        let device = matches!(self.raw.mode & format::S_IFMT, format::S_IFCHR | format::S_IFBLK);
        Meta {
            mode: self.raw.mode.into(),
            uid: self.raw.uid,
            gid: self.raw.gid,
            size: self.raw.size,
            mtime: self.raw.mtime,
            mtime_nsec: self.raw.mtime_nsec,
            nlink: self.raw.nlink,
            rdev: if device { format::decode_device(self.raw.union) } else { (0, 0) },
        }
    }

    fn kind(&self) -> u16 {
        self.raw.mode & format::S_IFMT
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == format::S_IFDIR
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == format::S_IFREG
    }

    /// Whether this is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind() == format::S_IFLNK
    }

    /// Whether overlayfs takes this for the deletion of a name: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == format::S_IFCHR && self.raw.union == 0
    }
}

impl Image {
    /// Opens `file`, called `name` in errors, and checks its superblock.
    ///
    /// # Errors
    /// When it is not EROFS, is damaged, or uses features that are not supported.
    pub fn open(file: File, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let len = file.metadata().map_err(|e| Error::io(format!("{name}: read its size"), e))?.len();
        let mut image = Self { file, name, len, sb: SuperBlock::default() };
        let mut head = [0; SUPER_SIZE];
        image.read_exact(SUPER_OFFSET, &mut head, "superblock")?;
        let Some(sb) = SuperBlock::decode(&head) else {
            return Err(image.corrupt("superblock", "the magic number is not that of EROFS"));
        };
        if !(9..=12).contains(&sb.block_bits) {
            return Err(image.unsupported("superblock", format!("a block size of 2^{} bytes", sb.block_bits)));
        }
        if sb.feature_incompat & !KNOWN_INCOMPAT != 0 {
            let unknown = sb.feature_incompat & !KNOWN_INCOMPAT;
            return Err(image.unsupported("superblock", format!("incompatible feature set {unknown:#x}")));
        }
        if sb.extra_devices != 0 {
            return Err(image.unsupported("superblock", "more than one device"));
        }
        if head[90] != 0 {
            return Err(image.unsupported("superblock", "a directory block size of its own"));
        }
        image.sb = sb;
        if sb.feature_compat & format::COMPAT_SB_CHKSUM != 0 {
            let block = image.block_size();
            let covered = if block > SUPER_OFFSET { block - SUPER_OFFSET } else { block };
            let mut bytes = vec![0; covered as usize];
            image.read_exact(SUPER_OFFSET, &mut bytes, "superblock")?;
            if format::superblock_checksum(&bytes) != sb.checksum {
                return Err(image.corrupt("superblock", "its checksum is wrong"));
            }
        }
        Ok(image)
    }

    /// Name used in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Block size in bytes.
    pub fn block_size(&self) -> u64 {
        1 << self.sb.block_bits
    }

    /// The root directory.
    ///
    /// # Errors
    /// When it cannot be read or is no directory.
    pub fn root(&self) -> Result<Inode> {
        let root = self.inode(self.sb.root_nid.into())?;
        if root.is_dir() { Ok(root) } else { Err(self.damaged(root.nid, "the root is not a directory")) }
    }

    /// Reads inode number `nid`.
    ///
    /// # Errors
    /// When it lies outside the file, contradicts itself or uses an unsupported layout.
    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let start = u64::from(self.sb.meta_blkaddr) << self.sb.block_bits;
        let at = nid.checked_mul(SLOT_SIZE).and_then(|slot| slot.checked_add(start));
        let Some(at) = at.filter(|at| *at < self.len) else {
            return Err(self.damaged(nid, "it lies outside the file"));
        };
        // One read for either form; a compact inode may be the last thing in the file.
        let mut bytes = [0; format::INODE_SIZE];
        let there = (self.len - at).min(bytes.len() as u64) as usize;
        self.read_exact_of(nid, at, &mut bytes[..there])?;
        let word = u16::from_le_bytes([bytes[0], bytes[1]]);
        if word >> 4 != 0 {
            return Err(self.unsupported(place(nid), format!("inode format {word:#x}")));
        }
        let size = format::Inode::size_on_disk(word);
        if size > there {
            return Err(self.damaged(nid, "it reaches beyond the end of the file"));
        }
        let time = (self.sb.build_time as i64, self.sb.build_time_nsec);
        let Some(raw) = format::Inode::decode(&bytes[..size], time) else {
            return Err(self.unsupported(place(nid), "compressed data"));
        };
        if format::file_type(raw.mode) == 0 {
            return Err(self.damaged(nid, format!("mode {:#o} has no file type", raw.mode)));
        }
        if raw.mtime_nsec >= 1_000_000_000 || raw.size > i64::MAX as u64 {
            return Err(self.damaged(nid, "its time or size is out of range"));
        }
        let xattrs = at + size as u64;
        let body = xattrs + format::xattr_area_size(raw.xattr_icount) as u64;
        if body > self.len {
            return Err(self.damaged(nid, "its attributes reach beyond the file"));
        }
        let inode = Inode { nid, raw, xattrs, body };
        self.check_data(&inode)?;
        Ok(inode)
    }

    fn read_exact(&self, at: u64, buf: &mut [u8], place: &str) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(self.corrupt(place, "it reaches beyond the end of the file"));
        }
        self.file
            .read_exact_at(buf, at)
            .map_err(|e| Error::io(format!("{}: read at byte {at}", self.name), e))
    }

    fn read_exact_of(&self, nid: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(self.damaged(nid, "it reaches beyond the end of the file"));
        }
        self.file
            .read_exact_at(buf, at)
            .map_err(|e| Error::io(format!("{}: read at byte {at}", self.name), e))
    }

    fn corrupt(&self, place: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Corrupt { file: self.name.clone(), place: place.into(), why: why.into() }
    }

    pub(crate) fn damaged(&self, nid: u64, why: impl Into<String>) -> Error {
        self.corrupt(place(nid), why)
    }

    fn unsupported(&self, place: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Unsupported { file: self.name.clone(), place: place.into(), what: what.into() }
    }
}

fn place(nid: u64) -> String {
    format!("inode {nid}")
}
