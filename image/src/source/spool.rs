//! Streams and compressed archives, made into a file that can be read anywhere.
//!
//! An archive may list its images last, and its layers in any order. Instead of keeping half of it in memory, what
//! cannot seek is written once to the store's temporary folder, decompressed, and read from there.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::rc::Rc;

use crate::error::{Error, IoContext, Result};
use crate::limits::Limits;
use crate::store::TempDir;

use super::wrapper::unpacked;

/// Writes a stream, decompressed, to a temporary file within `limits`.
pub(super) fn spool(mut input: impl Read, name: &str, temp: &TempDir, limits: &Limits) -> Result<File> {
    let failed = |error: io::Error| Error::invalid(name, format!("reading the archive: {error}"));
    let taken = Rc::new(Cell::new(0));
    let counted = Counted { inner: &mut input, taken: Rc::clone(&taken) };
    let mut reader = unpacked(counted, name, limits.layer.zstd_window_log)?;
    let (mut file, path) = temp.file("archive")?;
    let mut buffer = vec![0; 1 << 20];
    let mut total: u64 = 0;
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        total += n as u64;
        // The archive's own limit, and long before it that of a bomb.
        let ratio = taken.get().saturating_mul(limits.layer.ratio).max(limits.layer.ratio_floor);
        let limit = limits.archive_bytes.min(ratio);
        if total > limit {
            return Err(Error::Limit { subject: name.to_owned(), got: total, limit, unit: "bytes" });
        }
        file.write_all(&buffer[..n]).at("write", &path)?;
    }
}

/// Counts what was read.
struct Counted<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}
