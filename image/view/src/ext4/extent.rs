//! Extent trees, built left to right while the data is written.
//! Source: `Documentation/filesystems/ext4/ifork.rst` (6.12).

use super::layout::{BLOCK, put16, put32};
use super::output::Output;
use crate::error::Result;

/// Longest initialised extent, in blocks.
const MAX_LEN: u32 = 32768;
const ENTRY: usize = 12;
const PER_BLOCK: usize = (BLOCK as usize - ENTRY) / ENTRY;
const PER_ROOT: usize = 4;

/// First logical block and the rest of the twelve-byte entry (an extent or an index).
type Entry = (u32, [u8; 8]);

/// A tree under construction. Memory: at most one block of entries per level, whatever the number of extents.
#[derive(Default)]
pub(crate) struct ExtentTree {
    levels: Vec<Vec<Entry>>,
    tree_blocks: u64,
}

impl ExtentTree {
    /// Adds `len` blocks from logical block `logical` at `physical`. Calls must come in order.
    ///
    /// # Errors
    /// When writing a full tree block fails.
    pub fn push(&mut self, out: &mut Output<'_>, logical: u32, physical: u64, len: u64) -> Result<()> {
        let (mut logical, mut physical, mut left) = (logical, physical, len);
        while left > 0 {
            let now = left.min(u64::from(MAX_LEN)) as u32;
            let mut rest = [0; 8];
            put16(&mut rest, 0, if now == MAX_LEN { MAX_LEN as u16 } else { now as u16 });
            put16(&mut rest, 2, (physical >> 32) as u16);
            put32(&mut rest, 4, physical as u32);
            self.add(out, 0, (logical, rest))?;
            logical = logical.wrapping_add(now);
            physical += u64::from(now);
            left -= u64::from(now);
        }
        Ok(())
    }

    /// Ends the tree: its root for `i_block`, and the number of blocks the tree itself took.
    ///
    /// # Errors
    /// When writing a tree block fails.
    pub fn finish(mut self, out: &mut Output<'_>) -> Result<([u8; 60], u64)> {
        let mut depth = 0;
        while depth + 1 < self.levels.len() || self.levels.get(depth).is_some_and(|l| l.len() > PER_ROOT) {
            self.flush(out, depth)?;
            depth += 1;
        }
        let mut root = [0; 60];
        encode(&mut root, self.levels.get(depth).map_or(&[], Vec::as_slice), PER_ROOT, depth);
        Ok((root, self.tree_blocks))
    }

    fn add(&mut self, out: &mut Output<'_>, level: usize, entry: Entry) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() == PER_BLOCK {
            self.flush(out, level)?;
        }
        self.levels[level].push(entry);
        Ok(())
    }

    /// Writes a level's entries as one block and enters that block one level up.
    fn flush(&mut self, out: &mut Output<'_>, level: usize) -> Result<()> {
        let mut block = [0; BLOCK as usize];
        encode(&mut block, &self.levels[level], PER_BLOCK, level);
        let first = self.levels[level].first().map_or(0, |e| e.0);
        let at = out.allocate(1)?;
        out.write_block(at, &block)?;
        self.tree_blocks += 1;
        self.levels[level].clear();
        let mut rest = [0; 8];
        put32(&mut rest, 0, at as u32);
        put16(&mut rest, 4, (at >> 32) as u16);
        self.add(out, level + 1, (first, rest))
    }
}

fn encode(buf: &mut [u8], entries: &[Entry], max: usize, depth: usize) {
    put16(buf, 0, 0xf30a);
    put16(buf, 2, entries.len() as u16);
    put16(buf, 4, max as u16);
    put16(buf, 6, depth as u16);
    for (entry, slot) in entries.iter().zip(buf[ENTRY..].chunks_exact_mut(ENTRY)) {
        put32(slot, 0, entry.0);
        slot[4..].copy_from_slice(&entry.1);
    }
}
