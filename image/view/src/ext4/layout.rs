//! Where things stand in our ext4 files, and the structures that say so: superblock, group descriptors, bitmaps.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/{super,group_descr,bitmaps,blockgroup}.rst` (6.12).
//!
//! ```text
//! block 0 | descriptors | block bitmaps, all groups | inode bitmaps | inode tables | data …
//! ```
//!
//! `flex_bg` allows a group's bitmaps and inode table anywhere, so all of them stand at the front. Data is then
//! one range without gaps, which makes allocation a counter and every bitmap "ones up to here, zeros after".
//! `sparse_super2` with no backup groups keeps that range free of superblock copies. Groups nobody wrote to are
//! marked uninitialised (`uninit_bg`), so their bitmaps and inode tables stay holes in a sparse file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::crc16::crc16;
use crate::error::{Error, Result};

/// Block size in bytes; the only one written.
pub(crate) const BLOCK: u64 = 4096;
/// Most blocks and most inodes per group: as many as one bitmap block has bits.
const MAX_PER_GROUP: u64 = 8 * BLOCK;
/// Bytes of an inode on disk: 128 classic, 32 extra (nanoseconds, epoch bits), 96 for extended attributes.
pub(crate) const INODE_SIZE: u64 = 256;
/// Inodes per block of the inode table.
pub(crate) const INODES_PER_BLOCK: u32 = (BLOCK / INODE_SIZE) as u32;
/// Number of the root inode.
pub(crate) const ROOT_INODE: u32 = 2;
/// First inode number free for use; 1 to 10 are reserved.
pub(crate) const FIRST_INODE: u32 = 11;

const DESCRIPTOR_SIZE: u64 = 32;
const BG_INODE_UNINIT: u16 = 1;
const BG_BLOCK_UNINIT: u16 = 2;
const BG_INODE_ZEROED: u16 = 4;

const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const RO_LARGE_FILE: u32 = 0x2;
const RO_HUGE_FILE: u32 = 0x8;
const RO_GDT_CSUM: u32 = 0x10;
const RO_DIR_NLINK: u32 = 0x20;
const RO_EXTRA_ISIZE: u32 = 0x40;

/// Sizes from which every position follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Blocks in each group but the last, a multiple of 8, at most [`MAX_PER_GROUP`].
    pub blocks_per_group: u64,
    /// Inodes in each group, a multiple of [`INODES_PER_BLOCK`], at most [`MAX_PER_GROUP`].
    pub inodes_per_group: u32,
}

impl Geometry {
    /// A geometry of `blocks` blocks with room for at least `inodes` inodes.
    ///
    /// # Errors
    /// When the counts do not fit 32-bit block and inode numbers, or when the bookkeeping alone fills the blocks.
    pub fn new(blocks: u64, inodes: u64) -> Result<Self> {
        let geometry = Self::shape(blocks, inodes);
        if blocks > u64::from(u32::MAX) {
            return Err(Error::Invalid(format!(
                "ext4: {blocks} blocks of 4 KiB are more than the 16 TiB supported"
            )));
        }
        if geometry.inodes() < inodes || geometry.inodes() > u64::from(u32::MAX) {
            return Err(Error::Invalid(format!(
                "ext4: {inodes} inodes do not fit into {blocks} blocks of 4 KiB"
            )));
        }
        if geometry.data_start() >= blocks {
            return Err(Error::Invalid(format!(
                "ext4: {blocks} blocks of 4 KiB are too few, {} are needed for bookkeeping",
                geometry.data_start() + 1
            )));
        }
        Ok(geometry)
    }

    /// The smallest geometry that holds `data` data blocks and `inodes` inodes.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn fitting(data: u64, inodes: u64) -> Result<Self> {
        // Bookkeeping grows with the number of groups, which grows with the bookkeeping: go up to the fixed point.
        let mut blocks = data + 16;
        loop {
            let needed = Self::shape(blocks, inodes).data_start() + data;
            if needed <= blocks {
                return Self::new(blocks, inodes);
            }
            blocks = needed;
        }
    }

    fn shape(blocks: u64, inodes: u64) -> Self {
        // An inode bitmap is one block: many small files need more and then smaller groups.
        let groups = blocks.div_ceil(MAX_PER_GROUP).max(inodes.div_ceil(MAX_PER_GROUP)).max(1);
        let blocks_per_group = blocks.div_ceil(groups).next_multiple_of(8).max(256);
        let by_inodes = inodes.div_ceil(MAX_PER_GROUP) > blocks.div_ceil(MAX_PER_GROUP);
        let blocks_per_group = if by_inodes { blocks_per_group } else { MAX_PER_GROUP };
        let groups = blocks.div_ceil(blocks_per_group).max(1);
        let per_group = inodes.div_ceil(groups).next_multiple_of(u64::from(INODES_PER_BLOCK)).max(32);
        Self { blocks, blocks_per_group, inodes_per_group: per_group.min(MAX_PER_GROUP) as u32 }
    }

    /// Number of block groups.
    pub fn groups(&self) -> u64 {
        self.blocks.div_ceil(self.blocks_per_group).max(1)
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.groups() * DESCRIPTOR_SIZE).div_ceil(BLOCK)
    }

    fn block_bitmap(&self, group: u64) -> u64 {
        1 + self.descriptor_blocks() + group
    }

    fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(self.groups()) + group
    }

    fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    fn inode_table(&self, group: u64) -> u64 {
        self.inode_bitmap(self.groups()) + group * self.table_blocks()
    }

    /// First block free for data.
    pub fn data_start(&self) -> u64 {
        self.inode_table(self.groups())
    }

    /// Byte position of inode `number` (1-based) in the file.
    pub fn inode_offset(&self, number: u32) -> u64 {
        self.inode_table(0) * BLOCK + u64::from(number - 1) * INODE_SIZE
    }

    fn inodes(&self) -> u64 {
        self.groups() * u64::from(self.inodes_per_group)
    }

    fn blocks_in(&self, group: u64) -> u64 {
        (self.blocks - group * self.blocks_per_group).min(self.blocks_per_group)
    }
}

/// How much of the file system is taken, all of it from the start.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// First block that is free; everything before it is in use.
    pub next_block: u64,
    /// First inode number that is free; everything before it is in use.
    pub next_inode: u32,
    /// Inode numbers of directories, counted per group.
    pub directories: Vec<u16>,
}

/// What names a file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// File system UUID; also seeds the directory hash.
    pub uuid: [u8; 16],
    /// Volume label, at most 16 bytes are kept.
    pub label: Vec<u8>,
}

/// Writes superblock, descriptors and bitmaps into `file`, whose unwritten parts must read as zeros.
///
/// # Errors
/// When a write fails.
pub(crate) fn write_bookkeeping(
    file: &File,
    geometry: &Geometry,
    usage: &Usage,
    id: &Identity,
) -> Result<()> {
    let mut head = vec![0; ((1 + geometry.descriptor_blocks()) * BLOCK) as usize];
    head[1024..2048].copy_from_slice(&superblock(geometry, usage, id));
    for group in 0..geometry.groups() {
        let at = (BLOCK + group * DESCRIPTOR_SIZE) as usize;
        head[at..at + DESCRIPTOR_SIZE as usize].copy_from_slice(&descriptor(geometry, usage, id, group));
    }
    write(file, &head, 0)?;

    let touched = usage.next_block.div_ceil(geometry.blocks_per_group);
    let last = geometry.groups() - 1;
    for group in (0..touched).chain((touched <= last).then_some(last)) {
        let used = usage.next_block.saturating_sub(group * geometry.blocks_per_group);
        write(file, &bitmap(used, geometry.blocks_in(group)), geometry.block_bitmap(group) * BLOCK)?;
    }
    let per_group = u64::from(geometry.inodes_per_group);
    let used = u64::from(usage.next_inode - 1);
    for group in 0..used.div_ceil(per_group) {
        let bits = bitmap(used - group * per_group, per_group);
        write(file, &bits, geometry.inode_bitmap(group) * BLOCK)?;
    }
    Ok(())
}

fn write(file: &File, bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at).map_err(|e| Error::io("write ext4 bookkeeping", e))
}

/// A bitmap block: `used` ones, zeros up to `valid`, ones to the end.
fn bitmap(used: u64, valid: u64) -> Vec<u8> {
    let used = used.min(valid) as usize;
    let mut bits = vec![0u8; BLOCK as usize];
    bits[..used / 8].fill(0xff);
    if !used.is_multiple_of(8) {
        bits[used / 8] |= (1 << (used % 8)) - 1;
    }
    let valid = valid as usize;
    if !valid.is_multiple_of(8) {
        bits[valid / 8] |= !((1 << (valid % 8)) - 1);
    }
    bits[valid.div_ceil(8)..].fill(0xff);
    bits
}

fn descriptor(
    geometry: &Geometry,
    usage: &Usage,
    id: &Identity,
    group: u64,
) -> [u8; DESCRIPTOR_SIZE as usize] {
    let first_block = group * geometry.blocks_per_group;
    let used_blocks = usage.next_block.saturating_sub(first_block).min(geometry.blocks_in(group));
    let per_group = u64::from(geometry.inodes_per_group);
    let used_inodes = u64::from(usage.next_inode - 1).saturating_sub(group * per_group).min(per_group);
    let mut flags = BG_INODE_ZEROED;
    // e2fsck wants the last group's bitmap on disk, because its tail may lie beyond the file system.
    if used_blocks == 0 && group + 1 < geometry.groups() {
        flags |= BG_BLOCK_UNINIT;
    }
    if used_inodes == 0 {
        flags |= BG_INODE_UNINIT;
    }
    let mut d = [0; DESCRIPTOR_SIZE as usize];
    put32(&mut d, 0x0, geometry.block_bitmap(group) as u32);
    put32(&mut d, 0x4, geometry.inode_bitmap(group) as u32);
    put32(&mut d, 0x8, geometry.inode_table(group) as u32);
    put16(&mut d, 0xc, (geometry.blocks_in(group) - used_blocks) as u16);
    put16(&mut d, 0xe, (per_group - used_inodes) as u16);
    put16(&mut d, 0x10, usage.directories.get(group as usize).copied().unwrap_or(0));
    put16(&mut d, 0x12, flags);
    put16(&mut d, 0x1c, (per_group - used_inodes) as u16);
    let mut crc = crc16(0xffff, &id.uuid);
    crc = crc16(crc, &(group as u32).to_le_bytes());
    let crc = crc16(crc, &d[..0x1e]);
    put16(&mut d, 0x1e, crc);
    d
}

fn superblock(geometry: &Geometry, usage: &Usage, id: &Identity) -> [u8; 1024] {
    let mut s = [0; 1024];
    put32(&mut s, 0x0, geometry.inodes() as u32);
    put32(&mut s, 0x4, geometry.blocks as u32);
    put32(&mut s, 0xc, (geometry.blocks - usage.next_block) as u32);
    put32(&mut s, 0x10, (geometry.inodes() - u64::from(usage.next_inode - 1)) as u32);
    put32(&mut s, 0x18, 2); // log2(block size) - 10
    put32(&mut s, 0x1c, 2); // the same for clusters
    put32(&mut s, 0x20, geometry.blocks_per_group as u32);
    put32(&mut s, 0x24, geometry.blocks_per_group as u32);
    put32(&mut s, 0x28, geometry.inodes_per_group);
    put16(&mut s, 0x36, 0xffff); // never force a check by mount count
    put16(&mut s, 0x38, 0xef53);
    put16(&mut s, 0x3a, 1); // cleanly unmounted
    put16(&mut s, 0x3c, 1); // on errors: continue
    put32(&mut s, 0x4c, 1); // revision with variable inode size and feature flags
    put32(&mut s, 0x54, FIRST_INODE);
    put16(&mut s, 0x58, INODE_SIZE as u16);
    put32(&mut s, 0x5c, COMPAT_EXT_ATTR | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2);
    put32(&mut s, 0x60, INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_FLEX_BG);
    put32(&mut s, 0x64, RO_LARGE_FILE | RO_HUGE_FILE | RO_GDT_CSUM | RO_DIR_NLINK | RO_EXTRA_ISIZE);
    s[0x68..0x78].copy_from_slice(&id.uuid);
    let label = &id.label[..id.label.len().min(16)];
    s[0x78..0x78 + label.len()].copy_from_slice(label);
    s[0xec..0xfc].copy_from_slice(&id.uuid); // directory hash seed
    s[0xfc] = 1; // half-MD4
    put32(&mut s, 0x100, 0xc); // default mount options: user xattrs, ACLs
    put16(&mut s, 0x15c, 32); // minimum extra inode bytes
    put16(&mut s, 0x15e, 32); // wanted extra inode bytes
    put32(&mut s, 0x160, 2); // directory hash treats names as unsigned bytes
    s[0x174] = 4; // 16 groups per flex group, a hint for the allocator
    s
}

/// Stores a little-endian u16 at `at`.
pub(crate) fn put16(buf: &mut [u8], at: usize, value: u16) {
    buf[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Stores a little-endian u32 at `at`.
pub(crate) fn put32(buf: &mut [u8], at: usize, value: u32) {
    buf[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_marks_the_used_head_and_the_invalid_tail() {
        let bits = bitmap(11, 21);
        assert_eq!(bits[..4], [0xff, 0b0000_0111, 0b1110_0000, 0xff]);
        assert_eq!(bitmap(0, MAX_PER_GROUP), vec![0; 4096]);
        assert_eq!(bitmap(u64::MAX, MAX_PER_GROUP), vec![0xff; 4096]);
    }

    #[test]
    fn fitting_is_the_fixed_point() {
        for (data, inodes) in [(1, 12), (40_000, 12), (40_000, 500_000), (1_000_000, 33), (1, 3_000_000)] {
            let g = Geometry::fitting(data, inodes).unwrap();
            assert!(g.data_start() + data <= g.blocks, "{data} {inodes}");
            assert!(g.inodes() >= inodes);
            assert!(g.blocks - g.data_start() - data < 64, "{data} {inodes} {g:?}");
        }
    }

    #[test]
    fn refuses_what_32_bits_cannot_number() {
        assert!(Geometry::new(1 << 32, 100).is_err());
        assert!(Geometry::new(8, 100).is_err());
    }
}
