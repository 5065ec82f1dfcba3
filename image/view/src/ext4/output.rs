//! Where blocks go: a counter that hands them out, and a file, or none while only counting.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::layout::{BLOCK, Geometry};
use crate::error::{Error, Result};

/// Hands out blocks from low to high and writes them. Without a file it only counts, which is how sizes are
/// computed by the same code that later writes.
pub(crate) struct Output<'a> {
    file: Option<(&'a File, Geometry)>,
    next: u64,
    end: u64,
}

impl<'a> Output<'a> {
    /// Counts blocks and writes nothing.
    pub fn counting() -> Self {
        Self { file: None, next: 0, end: u64::from(u32::MAX) }
    }

    /// Writes into `file`, laid out as `geometry` says.
    pub fn writing(file: &'a File, geometry: Geometry) -> Self {
        Self { file: Some((file, geometry)), next: geometry.data_start(), end: geometry.blocks }
    }

    /// First block not handed out yet.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// Whether anything is written.
    pub fn is_writing(&self) -> bool {
        self.file.is_some()
    }

    /// Takes `count` adjacent blocks; the number of the first.
    ///
    /// # Errors
    /// When the file system is full.
    pub fn allocate(&mut self, count: u64) -> Result<u64> {
        let first = self.next;
        match first.checked_add(count) {
            Some(next) if next <= self.end => self.next = next,
            _ => {
                return Err(Error::Invalid(format!(
                    "ext4: more than {} blocks of 4 KiB are needed",
                    self.end
                )));
            }
        }
        Ok(first)
    }

    /// Writes one block.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write_block(&self, block: u64, bytes: &[u8; BLOCK as usize]) -> Result<()> {
        self.write_at(block * BLOCK, bytes)
    }

    /// Writes bytes at a byte position of the file system.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match self.file {
            Some((file, _)) => file.write_all_at(bytes, at).map_err(|e| Error::io("write the ext4 file", e)),
            None => Ok(()),
        }
    }

    /// Writes an inode record.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write_inode(&self, number: u32, record: &[u8]) -> Result<()> {
        match self.file {
            Some((_, geometry)) => self.write_at(geometry.inode_offset(number), record),
            None => Ok(()),
        }
    }
}
