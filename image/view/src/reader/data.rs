//! Where an inode's bytes lie in the file, and reading them.

use cloister_layer::erofs::format::{CHUNK_BITS_MASK, CHUNK_INDEXES, Layout, NULL_ADDR};

use super::{Image, Inode};
use crate::error::Result;

/// Entries of a chunk map looked at in one go.
const WINDOW: u64 = 512;
/// Longest symlink target, bytes (`PATH_MAX` without its NUL).
const TARGET_MAX: u64 = 4095;

/// Adjacent bytes of a file that lie together, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte in the file's contents.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Where they lie in the EROFS file; `None` for a hole, which reads as zeros.
    pub source: Option<u64>,
}

impl Run {
    fn end(&self) -> u64 {
        self.offset + self.len
    }

    fn continues_as(&self, next: &Self) -> bool {
        match (self.source, next.source) {
            (None, None) => true,
            (Some(here), Some(there)) => here + self.len == there,
            _ => false,
        }
    }
}

/// The runs of a file in order, adjacent ones merged.
#[derive(Debug)]
pub struct Runs<'a> {
    image: &'a Image,
    inode: Inode,
    at: u64,
    ahead: Option<Run>,
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run: Option<Run> = self.ahead.take();
        while self.at < self.inode.raw.size {
            let next = match self.image.map(&self.inode, self.at) {
                Ok(next) => next,
                Err(e) => {
                    self.at = u64::MAX;
                    return Some(Err(e));
                }
            };
            self.at = next.end();
            match &mut run {
                Some(run) if run.continues_as(&next) => run.len += next.len,
                Some(_) => {
                    self.ahead = Some(next);
                    break;
                }
                None => run = Some(next),
            }
        }
        run.map(Ok)
    }
}

impl Image {
    /// The runs of `inode`'s contents, from the first byte to the last.
    pub fn runs(&self, inode: &Inode) -> Runs<'_> {
        Runs { image: self, inode: *inode, at: 0, ahead: None }
    }

    /// Reads contents from `offset` until `buf` is full or the file ends; the number of bytes read.
    ///
    /// # Errors
    /// When the map of the data is damaged or a read fails.
    pub fn read_at(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() && offset + (done as u64) < inode.raw.size {
            let run = self.map(inode, offset + done as u64)?;
            let now = usize::try_from(run.len).unwrap_or(usize::MAX).min(buf.len() - done);
            let part = &mut buf[done..done + now];
            match run.source {
                Some(at) => self.read_exact_of(inode.nid, at, part)?,
                None => part.fill(0),
            }
            done += now;
        }
        Ok(done)
    }

    /// Reads the bytes of a run found by [`Image::runs`], `skip` bytes into it.
    ///
    /// # Errors
    /// When a read fails.
    pub fn read_run(&self, run: &Run, skip: u64, buf: &mut [u8]) -> Result<()> {
        match run.source {
            Some(at) => self.read_exact(at + skip, buf, "file data"),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// The target of symlink `inode`: 1 to 4095 bytes without NUL.
    ///
    /// # Errors
    /// When the target is empty, too long or contains NUL, or a read fails.
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let size = inode.raw.size;
        if size == 0 || size > TARGET_MAX {
            return Err(self.damaged(inode.nid, format!("a symlink target of {size} bytes")));
        }
        let mut target = vec![0; size as usize];
        self.read_at(inode, 0, &mut target)?;
        if target.contains(&0) {
            return Err(self.damaged(inode.nid, "its symlink target contains NUL"));
        }
        Ok(target)
    }

    /// Checks, once per inode, that all data the layout names lies inside the file.
    pub(super) fn check_data(&self, inode: &Inode) -> Result<()> {
        if !(inode.is_file() || inode.is_dir() || inode.is_symlink()) || inode.raw.size == 0 {
            return Ok(());
        }
        let size = inode.raw.size;
        let fits = match inode.raw.layout {
            Layout::FlatPlain => self.flat_start(inode) + u128::from(size) <= u128::from(self.len),
            Layout::FlatInline => {
                let whole = self.whole_blocks(size);
                let tail = size - whole;
                if inode.body % self.block_size() + tail > self.block_size() {
                    return Err(self.damaged(inode.nid, "its inline data crosses a block"));
                }
                // Addresses without whole blocks mean nothing.
                let flat = whole == 0 || self.flat_start(inode) + u128::from(whole) <= u128::from(self.len);
                flat && inode.body + tail <= self.len
            }
            Layout::ChunkBased => {
                let format = inode.raw.union;
                if format & !u32::from(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
                    return Err(
                        self.unsupported(super::place(inode.nid), format!("chunk format {format:#x}"))
                    );
                }
                let (table, unit) = self.chunk_table(inode);
                let count = u128::from(size).div_ceil(1 << self.chunk_bits(inode));
                u128::from(table) + count * u128::from(unit) <= u128::from(self.len)
            }
        };
        if fits {
            Ok(())
        } else {
            Err(self.damaged(inode.nid, "its data reaches beyond the end of the file"))
        }
    }

    /// The longest run starting at `offset`, which is below the file's size, that one look at the map shows.
    fn map(&self, inode: &Inode, offset: u64) -> Result<Run> {
        let size = inode.raw.size;
        Ok(match inode.raw.layout {
            Layout::FlatPlain => {
                Run { offset, len: size - offset, source: Some(self.flat_start(inode) as u64 + offset) }
            }
            Layout::FlatInline => {
                let whole = self.whole_blocks(size);
                if offset < whole {
                    Run { offset, len: whole - offset, source: Some(self.flat_start(inode) as u64 + offset) }
                } else {
                    Run { offset, len: size - offset, source: Some(inode.body + (offset - whole)) }
                }
            }
            Layout::ChunkBased => return self.map_chunks(inode, offset),
        })
    }

    fn map_chunks(&self, inode: &Inode, offset: u64) -> Result<Run> {
        let size = inode.raw.size;
        let bits = self.chunk_bits(inode);
        let (table, unit) = self.chunk_table(inode);
        let first = offset >> bits;
        let count = (((size - 1) >> bits) - first + 1).min(WINDOW);
        let mut window = [0; 8 * WINDOW as usize];
        let window = &mut window[..(count * unit) as usize];
        self.read_exact_of(inode.nid, table + first * unit, window)?;

        let mut run: Option<Run> = None;
        for (index, entry) in (first..).zip(window.chunks_exact(unit as usize)) {
            let start = (index << bits).max(offset);
            let len = ((index + 1) << bits).min(size) - start;
            let source = match self.chunk_address(inode, entry)? {
                Some(address) => Some(self.chunk_source(inode, address, start - (index << bits), len)?),
                None => None,
            };
            let next = Run { offset: start, len, source };
            match &mut run {
                None => run = Some(next),
                Some(run) if run.continues_as(&next) => run.len += len,
                Some(_) => break,
            }
        }
        run.ok_or_else(|| self.damaged(inode.nid, "its chunk map is empty"))
    }

    /// Block address in a map entry; `None` for a hole.
    fn chunk_address(&self, inode: &Inode, entry: &[u8]) -> Result<Option<u32>> {
        let address = match *entry {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            [_, _, device, device_high, a, b, c, d] => {
                let address = u32::from_le_bytes([a, b, c, d]);
                if (device, device_high) != (0, 0) && address != NULL_ADDR {
                    return Err(self.unsupported(super::place(inode.nid), "data on another device"));
                }
                address
            }
            _ => NULL_ADDR,
        };
        Ok((address != NULL_ADDR).then_some(address))
    }

    fn chunk_source(&self, inode: &Inode, address: u32, skip: u64, len: u64) -> Result<u64> {
        let at = (u64::from(address) << self.sb.block_bits).checked_add(skip);
        match at {
            Some(at) if at.checked_add(len).is_some_and(|end| end <= self.len) => Ok(at),
            _ => Err(self.damaged(inode.nid, "a chunk lies beyond the end of the file")),
        }
    }

    fn chunk_bits(&self, inode: &Inode) -> u32 {
        u32::from(self.sb.block_bits) + (inode.raw.union & u32::from(CHUNK_BITS_MASK))
    }

    /// Byte position of the chunk map and bytes per entry.
    fn chunk_table(&self, inode: &Inode) -> (u64, u64) {
        let unit = if inode.raw.union & u32::from(CHUNK_INDEXES) != 0 { 8 } else { 4 };
        (inode.body.next_multiple_of(unit), unit)
    }

    fn flat_start(&self, inode: &Inode) -> u128 {
        u128::from(inode.raw.union) << self.sb.block_bits
    }

    /// Bytes of an inline file that lie in blocks of their own: all but the last, perhaps full, block.
    fn whole_blocks(&self, size: u64) -> u64 {
        (size - 1) >> self.sb.block_bits << self.sb.block_bits
    }
}
