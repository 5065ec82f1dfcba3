//! From the tree to metadata on disk: where each inode goes, then directory blocks, then inodes.
//!
//! Layout behind the data: whole blocks of directories and long symlinks, in the order of their inodes; then the inode
//! area, breadth first from the root, each inode followed by its attributes and its inline data or chunk map.

use std::collections::HashMap;

use super::format::{
    self, BLOCK_BITS, BLOCK_SIZE, DIRENT_SIZE, Dirent, INODE_SIZE, Inode, Layout, SLOT_SIZE, SuperBlock,
};
use super::head::Identity;
use super::tree::{Content, Tree};
use super::writer::Writer;
use crate::error::Error;

const BLOCK: usize = BLOCK_SIZE as usize;
/// Longest rest of a directory or symlink kept behind its inode. With attributes of any length at least two of a block's
/// slots keep it from crossing a block, as the kernel demands; in one slot, the last, the inode itself would cross.
const MAX_TAIL: usize = BLOCK - 2 * SLOT_SIZE as usize;
const UNPLACED: u32 = 0;

/// Writes everything but the data, which is in `writer`'s file already. Returns the size of the file in bytes and the
/// number of inodes.
///
/// # Errors
/// Writing failed, or the file would grow beyond its limit.
pub fn finish(mut writer: Writer<'_>, mut tree: Tree, identity: &Identity) -> Result<(u64, u64), Error> {
    tree.seal();
    let mut plan = Plan::new(&tree);
    let maps = plan.place(&mut writer)?;
    let blocks_start = writer.align(BLOCK_SIZE)? / BLOCK_SIZE;
    plan.write_blocks(&mut writer)?;
    let meta_blkaddr = writer.align(BLOCK_SIZE)? / BLOCK_SIZE;
    plan.write_inodes(&mut writer, blocks_start, &maps)?;
    let superblock = SuperBlock {
        // No checksum: fsck.erofs up to 1.8.6 at least takes the block size less 1024 as its length and crashes on blocks
        // of 512 bytes. The record in front of the superblock has one.
        feature_compat: format::COMPAT_MTIME,
        feature_incompat: if maps.is_empty() { 0 } else { format::INCOMPAT_CHUNKED_FILE },
        block_bits: BLOCK_BITS,
        root_nid: plan.nids[0] as u16,
        inodes: plan.order.len() as u64,
        meta_blkaddr: meta_blkaddr as u32,
        ..SuperBlock::default()
    };
    let inodes = superblock.inodes;
    let size = writer
        .finish(|size| identity.encode(SuperBlock { blocks: (size / BLOCK_SIZE) as u32, ..superblock }))?;
    Ok((size, inodes))
}

/// An inode in writing order.
struct Placed {
    inode: u32,
    /// For directories: the inode `..` leads to.
    parent: u32,
    /// For directories and symlinks: bytes of data.
    size: u64,
}

struct Plan<'t> {
    tree: &'t Tree,
    /// Names of the tree by (directory, name).
    sorted: Vec<u32>,
    /// Per inode its number, [`UNPLACED`] if no name leads to it.
    nids: Vec<u32>,
    nlinks: Vec<u32>,
    order: Vec<Placed>,
}

/// One name of a directory, and the inode it leads to.
struct Name<'t> {
    name: &'t [u8],
    inode: u32,
}

type Maps = HashMap<u32, Vec<u32>>;

impl<'t> Plan<'t> {
    fn new(tree: &'t Tree) -> Self {
        let mut sorted: Vec<u32> = (0..tree.dentries.len() as u32).collect();
        sorted.sort_unstable_by_key(|id| {
            let dentry = &tree.dentries[*id as usize];
            (dentry.parent, tree.name(dentry))
        });
        let count = tree.nodes.len();
        Self { tree, sorted, nids: vec![UNPLACED; count], nlinks: vec![0; count], order: Vec::new() }
    }

    /// The names of a directory in bytewise order, `.` and `..` among them.
    fn names(&self, directory: u32, parent: u32) -> impl Iterator<Item = Name<'t>> + use<'t, '_> {
        let tree = self.tree;
        let start = self.sorted.partition_point(|id| tree.dentries[*id as usize].parent < directory);
        let mut children = self.sorted[start..]
            .iter()
            .map(move |id| &tree.dentries[*id as usize])
            .take_while(move |dentry| dentry.parent == directory)
            .map(move |dentry| Name { name: tree.name(dentry), inode: dentry.inode })
            .peekable();
        let dots = [Name { name: b".", inode: directory }, Name { name: b"..", inode: parent }];
        let mut dots = dots.into_iter().peekable();
        std::iter::from_fn(move || {
            let dot_first = match (dots.peek(), children.peek()) {
                (Some(dot), Some(child)) => dot.name < child.name,
                (dot, _) => dot.is_some(),
            };
            if dot_first { dots.next() } else { children.next() }
        })
    }

    /// Gives every inode that can be reached its place, and assembles sparse files. The order is breadth first, so the
    /// root is first and its number fits the 16 bits the superblock has for it.
    fn place(&mut self, writer: &mut Writer<'_>) -> Result<Maps, Error> {
        let mut maps = Maps::new();
        // Number 0 would be legal, but reads as "no inode" in too many programs.
        let mut end = INODE_SIZE as u64;
        self.place_one(0, 0, &mut end, writer, &mut maps)?;
        let mut next = 0;
        while next < self.order.len() {
            let Placed { inode: directory, parent, .. } = self.order[next];
            next += 1;
            if !matches!(self.tree.nodes[directory as usize].content, Content::Directory) {
                continue;
            }
            let found: Vec<u32> = self.names(directory, parent).map(|name| name.inode).collect();
            for inode in found {
                self.nlinks[inode as usize] += 1;
                if self.nids[inode as usize] == UNPLACED {
                    self.place_one(inode, directory, &mut end, writer, &mut maps)?;
                }
            }
        }
        Ok(maps)
    }

    fn place_one(
        &mut self,
        inode: u32,
        parent: u32,
        end: &mut u64,
        writer: &mut Writer<'_>,
        maps: &mut Maps,
    ) -> Result<(), Error> {
        let node = &self.tree.nodes[inode as usize];
        let size = match &node.content {
            Content::Directory => {
                let mut packer = Packer::default();
                self.names(inode, parent).for_each(|name| _ = packer.push(name.name));
                packer.size()
            }
            Content::Symlink(target) => target.len() as u64,
            Content::Sparse(sparse) => {
                if sparse.chunks() > 0 {
                    maps.insert(inode, sparse.map(|len, pieces| writer.assemble(len, pieces))?);
                }
                sparse.chunks() * 4
            }
            _ => 0,
        };
        let xattrs = self.xattr_size(inode);
        let behind = (INODE_SIZE + xattrs) as u64;
        let (inline, at) = match node.content {
            // A chunk map may cross blocks.
            Content::Sparse(_) => (size, slot(*end, behind, 0)),
            _ => (inline_tail(size) as u64, slot(*end, behind, inline_tail(size) as u64)),
        };
        *end = at + behind + inline;
        self.nids[inode as usize] =
            u32::try_from(at / SLOT_SIZE).map_err(|_| Error::TooLarge { what: "2^32 inode slots" })?;
        self.order.push(Placed { inode, parent, size });
        Ok(())
    }

    /// Bytes of the attribute area with its header; 0 without attributes.
    fn xattr_size(&self, inode: u32) -> usize {
        let (own, opaque) = self.tree.xattr_area(&self.tree.nodes[inode as usize]);
        match own.len() + opaque.len() {
            0 => 0,
            entries => format::XATTR_HEADER_SIZE + entries,
        }
    }

    fn write_blocks(&self, writer: &mut Writer<'_>) -> Result<(), Error> {
        for placed in &self.order {
            let blocks = whole_blocks(placed.size);
            match &self.tree.nodes[placed.inode as usize].content {
                Content::Directory if blocks > 0 => {
                    let mut left = blocks;
                    self.each_directory_block(placed, |bytes| {
                        if left == 0 {
                            return Ok(());
                        }
                        left -= 1;
                        writer.write(bytes)?;
                        writer.align(BLOCK_SIZE).map(drop)
                    })?;
                }
                Content::Symlink(target) if blocks > 0 => {
                    writer.write(&target[..target.len().min(blocks as usize * BLOCK)])?;
                    writer.align(BLOCK_SIZE)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write_inodes(&self, writer: &mut Writer<'_>, blocks_start: u64, maps: &Maps) -> Result<(), Error> {
        let meta_start = writer.position();
        let mut blocks = blocks_start;
        for (number, placed) in self.order.iter().enumerate() {
            let at = meta_start + u64::from(self.nids[placed.inode as usize]) * SLOT_SIZE;
            while writer.position() < at {
                writer.write(&[0; BLOCK][..(at - writer.position()).min(BLOCK_SIZE) as usize])?;
            }
            let node = &self.tree.nodes[placed.inode as usize];
            let mut layout = Layout::FlatPlain;
            let mut size = placed.size;
            let union = match &node.content {
                Content::Directory | Content::Symlink(_) => {
                    if inline_tail(size) > 0 {
                        layout = Layout::FlatInline;
                    }
                    let start = blocks;
                    blocks += whole_blocks(size);
                    start as u32
                }
                Content::Blocks { start, size: bytes } => {
                    size = *bytes;
                    *start
                }
                Content::Sparse(sparse) => {
                    size = sparse.size();
                    if sparse.chunks() > 0 {
                        layout = Layout::ChunkBased;
                    }
                    sparse.chunk_format()
                }
                Content::Device(device) => *device,
                Content::None => 0,
            };
            let xattr_icount = format::xattr_icount(self.xattr_size(placed.inode))
                .ok_or(Error::TooLarge { what: "256 KiB of attributes" })?;
            let inode = Inode {
                layout,
                mode: node.meta.mode,
                xattr_icount,
                size,
                union,
                ino: number as u32 + 1,
                uid: node.meta.uid,
                gid: node.meta.gid,
                mtime: node.meta.mtime,
                mtime_nsec: node.meta.mtime_nsec,
                nlink: self.nlinks[placed.inode as usize],
            };
            writer.write(&inode.encode())?;
            if xattr_icount > 0 {
                let (own, opaque) = self.tree.xattr_area(node);
                writer.write(&[0; format::XATTR_HEADER_SIZE])?;
                writer.write(own)?;
                writer.write(opaque)?;
            }
            self.write_inline(writer, placed, maps)?;
        }
        Ok(())
    }

    fn write_inline(&self, writer: &mut Writer<'_>, placed: &Placed, maps: &Maps) -> Result<(), Error> {
        let tail = inline_tail(placed.size);
        match &self.tree.nodes[placed.inode as usize].content {
            Content::Directory if tail > 0 => {
                let mut before = whole_blocks(placed.size);
                self.each_directory_block(placed, |bytes| match before.checked_sub(1) {
                    Some(less) => {
                        before = less;
                        Ok(())
                    }
                    None => writer.write(bytes),
                })
            }
            Content::Symlink(target) => writer.write(&target[target.len() - tail..]),
            Content::Sparse(_) => match maps.get(&placed.inode) {
                Some(map) => map.iter().try_for_each(|block| writer.write(&block.to_le_bytes())),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn each_directory_block(
        &self,
        placed: &Placed,
        mut emit: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut packer = Packer::default();
        let mut block: Vec<Name<'_>> = Vec::new();
        for name in self.names(placed.inode, placed.parent) {
            if packer.push(name.name) {
                emit(&self.directory_block(&block))?;
                block.clear();
            }
            block.push(name);
        }
        emit(&self.directory_block(&block))
    }

    fn directory_block(&self, names: &[Name<'_>]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        let mut name_offset = names.len() * DIRENT_SIZE;
        for name in names {
            let mode = self.tree.nodes[name.inode as usize].meta.mode;
            let nid = self.nids[name.inode as usize].into();
            let dirent = Dirent { nid, name_offset: name_offset as u16, file_type: format::file_type(mode) };
            bytes.extend(dirent.encode());
            name_offset += name.name.len();
        }
        names.iter().for_each(|name| bytes.extend(name.name));
        bytes
    }
}

/// Divides the names of a directory among blocks.
#[derive(Default)]
struct Packer {
    full: u64,
    used: usize,
}

impl Packer {
    /// Adds a name; true if it opens a new block.
    fn push(&mut self, name: &[u8]) -> bool {
        let need = DIRENT_SIZE + name.len();
        let opens = self.used + need > BLOCK;
        if opens {
            self.full += 1;
            self.used = 0;
        }
        self.used += need;
        opens
    }

    fn size(&self) -> u64 {
        self.full * BLOCK_SIZE + self.used as u64
    }
}

/// Bytes at the end of data of `size` bytes that go behind the inode; 0 if it has to be whole blocks.
fn inline_tail(size: u64) -> usize {
    match (size % BLOCK_SIZE) as usize {
        tail @ 1..=MAX_TAIL => tail,
        _ => 0,
    }
}

/// The first place at or after `end` for an inode, which crosses no block, nor do the `inline` bytes that begin `behind`
/// bytes later; at most [`MAX_TAIL`].
fn slot(end: u64, behind: u64, inline: u64) -> u64 {
    debug_assert!(inline <= MAX_TAIL as u64);
    let mut at = end.next_multiple_of(SLOT_SIZE);
    while at % BLOCK_SIZE > BLOCK_SIZE - INODE_SIZE as u64 || (at + behind) % BLOCK_SIZE + inline > BLOCK_SIZE
    {
        at += SLOT_SIZE;
    }
    at
}

fn whole_blocks(size: u64) -> u64 {
    if inline_tail(size) > 0 { size / BLOCK_SIZE } else { size.div_ceil(BLOCK_SIZE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tail_has_a_slot_behind_attributes_of_any_length() {
        for (xattrs, inline) in
            (0..BLOCK_SIZE).step_by(4).flat_map(|x| (0..=MAX_TAIL as u64).map(move |i| (x, i)))
        {
            let behind = INODE_SIZE as u64 + xattrs;
            for end in [0, 32, 448, 480] {
                let at = slot(end, behind, inline);
                assert!(at < end + 2 * BLOCK_SIZE && at.is_multiple_of(SLOT_SIZE), "{xattrs} {inline}");
                assert!(at % BLOCK_SIZE + INODE_SIZE as u64 <= BLOCK_SIZE);
                assert!((at + behind) % BLOCK_SIZE + inline <= BLOCK_SIZE);
            }
        }
    }
}
