//! The empty, writable file system of a VM's scratch disk.

use std::fs::File;

use super::dir::DirWriter;
use super::inode::{FLAG_EXTENTS, INLINE_XATTR_BYTES, Inode, S_IFDIR};
use super::layout::{BLOCK, FIRST_INODE, Geometry, Identity, ROOT_INODE, Usage, write_bookkeeping};
use super::output::Output;
use crate::error::{Error, Result};

/// One inode per this many bytes, as mkfs chooses by default.
const BYTES_PER_INODE: u64 = 16384;

/// Smallest size accepted, in bytes.
pub const MIN_SIZE: u64 = 1 << 20;

/// Makes `file` an empty ext4 file system of `size` bytes (rounded down to 4 KiB), replacing what it held.
///
/// The file stays sparse: about one descriptor of 32 bytes per 128 MiB and one bitmap block per 8 GiB are written,
/// so a terabyte costs less than a megabyte and a few milliseconds. The root folder is owned by root, mode 0755,
/// and empty; times are 1970. Same size, same bytes.
///
/// # Errors
/// When `size` is below [`MIN_SIZE`] or above 16 TiB, `file` is not a regular file open for writing, or a write fails.
pub fn create(file: &File, size: u64) -> Result<()> {
    if size < MIN_SIZE {
        return Err(Error::Invalid(format!(
            "scratch disk of {size} bytes: at least {MIN_SIZE} bytes are needed"
        )));
    }
    let blocks = size / BLOCK;
    let geometry = Geometry::new(blocks, size / BYTES_PER_INODE)?;
    // To nothing and up again: whatever stood in the file must not shine through where we write nothing.
    file.set_len(0)
        .and_then(|()| file.set_len(blocks * BLOCK))
        .map_err(|e| Error::io("size the scratch disk", e))?;

    let mut out = Output::writing(file, geometry);
    let (block, blocks, tree) = DirWriter::new(&mut out, ROOT_INODE, ROOT_INODE)?.finish(&mut out)?;
    let root = Inode {
        mode: (S_IFDIR | 0o755) as u16,
        uid: 0,
        gid: 0,
        size: blocks * BLOCK,
        links: 2,
        mtime: (0, 0),
        blocks: blocks + tree,
        flags: FLAG_EXTENTS,
        block,
        xattr_block: 0,
        inline_xattrs: [0; INLINE_XATTR_BYTES],
    };
    out.write_inode(ROOT_INODE, &root.encode())?;
    let usage = Usage { next_block: out.next_block(), next_inode: FIRST_INODE, directories: vec![1] };
    let id = Identity { uuid: *b"cloister\x80scratch", label: b"scratch".to_vec() };
    write_bookkeeping(file, &geometry, &usage, &id)
}
