//! The output file: data in the order it comes, then what [`super::plan`] makes of the tree, the head last.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::format::BLOCK_SIZE;
use super::head::HEAD_SIZE;
use crate::error::Error;

/// Small writes are gathered up to this many bytes; larger ones go out as they are.
const BUFFER: usize = 256 << 10;
/// After so many bytes the kernel is told to start writing them to disk.
const WRITEBACK: u64 = 16 << 20;

/// Appends to an EROFS file. The file must be empty, and open for reading and writing.
pub struct Writer<'f> {
    file: &'f File,
    /// Bytes of the file that are written or in `buffer`.
    position: u64,
    buffer: Vec<u8>,
    limit: u64,
    pushed: u64,
}

impl<'f> Writer<'f> {
    /// Starts behind the space kept for the head. The file will not grow beyond `limit` bytes.
    pub fn new(file: &'f File, limit: u64) -> Self {
        let limit = limit.min(u64::from(u32::MAX - 1) * BLOCK_SIZE);
        Self { file, position: HEAD_SIZE, buffer: Vec::new(), limit, pushed: 0 }
    }

    /// Where the next byte goes, from the start of the file.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// Writing failed, or the file would grow beyond its limit.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.reserve(bytes.len() as u64)?;
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER / 4 && self.buffer.is_empty() {
            self.file.write_all_at(bytes, self.position).map_err(write_error)?;
            self.position += bytes.len() as u64;
            self.push_out();
        } else {
            self.buffer.extend_from_slice(bytes);
            self.position += bytes.len() as u64;
        }
        Ok(())
    }

    /// Pads with zeros to a multiple of `alignment`, a power of two of at most 4096, and returns the position.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn align(&mut self, alignment: u64) -> Result<u64, Error> {
        let pad = self.position.next_multiple_of(alignment) - self.position;
        self.write(&[0; 4096][..pad as usize])?;
        Ok(self.position)
    }

    /// Appends `len` bytes of `source` from `offset` on, starting at a block, and returns that block's number.
    ///
    /// # Errors
    /// Reading failed or ended early; as [`Writer::write`].
    pub fn copy(&mut self, source: &File, mut offset: u64, mut len: u64) -> Result<u32, Error> {
        let start = self.align(BLOCK_SIZE)?;
        self.reserve(len)?;
        self.flush()?;
        while len > 0 {
            let mut from = offset;
            let mut to = self.position;
            let chunk = len.min(WRITEBACK) as usize;
            let copied =
                match rustix::fs::copy_file_range(source, Some(&mut from), self.file, Some(&mut to), chunk) {
                    Ok(0) => return Err(read_error(io::ErrorKind::UnexpectedEof.into())),
                    Ok(copied) => copied as u64,
                    Err(_) => self.copy_through_memory(source, offset, len)?,
                };
            (offset, len, self.position) = (offset + copied, len - copied, self.position + copied);
            self.push_out();
        }
        Ok((start / BLOCK_SIZE) as u32)
    }

    fn copy_through_memory(&mut self, source: &File, offset: u64, len: u64) -> Result<u64, Error> {
        let len = len.min(BUFFER as u64);
        self.buffer.resize(len as usize, 0);
        let result = source
            .read_exact_at(&mut self.buffer, offset)
            .map_err(read_error)
            .and_then(|()| self.file.write_all_at(&self.buffer, self.position).map_err(write_error));
        self.buffer.clear();
        result.map(|()| len)
    }

    /// Leaves a hole of `len` bytes at the next block and fills it with `pieces`, pairs of (offset in the hole, range of
    /// this very file). Returns the hole's position.
    pub(super) fn assemble(
        &mut self,
        len: u64,
        pieces: &mut dyn Iterator<Item = super::Segment>,
    ) -> Result<u64, Error> {
        let start = self.align(BLOCK_SIZE)?;
        self.reserve(len)?;
        self.flush()?;
        let mut buffer = Vec::new();
        for piece in pieces {
            let mut done = 0;
            while done < piece.len {
                buffer.resize((piece.len - done).min(BUFFER as u64) as usize, 0);
                self.file.read_exact_at(&mut buffer, piece.at + done).map_err(read_error)?;
                self.file.write_all_at(&buffer, start + piece.offset + done).map_err(write_error)?;
                done += buffer.len() as u64;
            }
        }
        self.position += len;
        Ok(start)
    }

    /// Ends the file at a multiple of 4096 bytes, then writes the head. Returns the file's size.
    pub(super) fn finish(mut self, head: impl FnOnce(u64) -> Vec<u8>) -> Result<u64, Error> {
        let size = self.align(HEAD_SIZE)?;
        self.flush()?;
        self.file.set_len(size).map_err(write_error)?;
        self.file.write_all_at(&head(size), 0).map_err(write_error)?;
        Ok(size)
    }

    fn reserve(&self, len: u64) -> Result<(), Error> {
        if len > self.limit.saturating_sub(self.position) {
            return Err(Error::Limit {
                field: "uncompressed_bytes",
                what: "bytes of EROFS file",
                limit: self.limit,
            });
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let at = self.position - self.buffer.len() as u64;
        self.file.write_all_at(&self.buffer, at).map_err(write_error)?;
        self.buffer.clear();
        self.push_out();
        Ok(())
    }

    /// Starts writing full stretches to disk without waiting, so that the caller's final fsync has little left to do.
    fn push_out(&mut self) {
        let end = self.position - self.buffer.len() as u64;
        let len = end.saturating_sub(self.pushed);
        if len < WRITEBACK {
            return;
        }
        // SAFETY: takes no pointers; the descriptor is open as long as `self.file` is borrowed. A failure (pipes, odd
        // file systems) costs only time.
        unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                self.pushed.cast_signed(),
                len.cast_signed(),
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
        self.pushed = end;
    }
}

fn write_error(source: io::Error) -> Error {
    Error::Io { doing: "writing the EROFS file", source }
}

fn read_error(source: io::Error) -> Error {
    Error::Io { doing: "copying file data into the EROFS file", source }
}
