//! Linear directory blocks. Source: `Documentation/filesystems/ext4/directory.rst` (6.12).

use super::extent::ExtentTree;
use super::layout::{BLOCK, put16, put32};
use super::output::Output;
use crate::error::Result;

const HEADER: usize = 8;

/// Builds a directory's blocks one after the other; memory is one block.
///
/// The directory stays linear: the kernel reads such directories whatever their size, and turns into an indexed
/// one any directory that it itself grows past its first block.
pub(crate) struct DirWriter {
    block: Box<[u8; BLOCK as usize]>,
    /// End of the entries in `block`.
    used: usize,
    /// Start of the last entry, whose length reaches to the end of the block.
    last: usize,
    blocks: u64,
    extents: ExtentTree,
    /// Run of adjacent blocks not yet in `extents`: logical, physical, length.
    run: Option<(u32, u64, u64)>,
}

impl DirWriter {
    /// Starts with the entries `.` and `..`.
    ///
    /// # Errors
    /// When a write fails.
    pub fn new(out: &mut Output<'_>, this: u32, parent: u32) -> Result<Self> {
        let mut dir = Self {
            block: Box::new([0; BLOCK as usize]),
            used: 0,
            last: 0,
            blocks: 0,
            extents: ExtentTree::default(),
            run: None,
        };
        dir.add(out, b".", this, 2)?;
        dir.add(out, b"..", parent, 2)?;
        Ok(dir)
    }

    /// Adds an entry; `name` has 1 to 255 bytes, `kind` is the type byte.
    ///
    /// # Errors
    /// When a write fails.
    pub fn add(&mut self, out: &mut Output<'_>, name: &[u8], inode: u32, kind: u8) -> Result<()> {
        let length = (HEADER + name.len()).next_multiple_of(4);
        if self.used + length > self.block.len() {
            self.flush(out)?;
        }
        let at = self.used;
        put32(&mut self.block[..], at, inode);
        put16(&mut self.block[..], at + 4, length as u16);
        self.block[at + 6] = name.len() as u8;
        self.block[at + 7] = kind;
        self.block[at + HEADER..at + HEADER + name.len()].copy_from_slice(name);
        self.last = at;
        self.used = at + length;
        Ok(())
    }

    /// Ends the directory: tree root, number of data blocks, number of tree blocks.
    ///
    /// # Errors
    /// When a write fails.
    pub fn finish(mut self, out: &mut Output<'_>) -> Result<([u8; 60], u64, u64)> {
        self.flush(out)?;
        if let Some((logical, physical, len)) = self.run {
            self.extents.push(out, logical, physical, len)?;
        }
        let (root, tree_blocks) = self.extents.finish(out)?;
        Ok((root, self.blocks, tree_blocks))
    }

    fn flush(&mut self, out: &mut Output<'_>) -> Result<()> {
        let (last, length) = (self.last, self.block.len() - self.last);
        put16(&mut self.block[..], last + 4, length as u16);
        let at = out.allocate(1)?;
        out.write_block(at, &self.block)?;
        match &mut self.run {
            Some((_, physical, len)) if *physical + *len == at => *len += 1,
            run => {
                let previous = run.replace((self.blocks as u32, at, 1));
                if let Some((logical, physical, len)) = previous {
                    self.extents.push(out, logical, physical, len)?;
                }
            }
        }
        self.blocks += 1;
        self.block.fill(0);
        (self.used, self.last) = (0, 0);
        Ok(())
    }
}
