//! Streams and compressed archives, made into a file that can be read anywhere.
//!
//! An archive may list its images last, and its layers in any order. Instead of keeping half of it in memory, what
//! cannot seek is written once to the store's temporary folder, decompressed, and read from there.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::rc::Rc;

use crate::error::{Error, IoContext, Result};
use crate::limits::Limits;
use crate::store::TempDir;

/// Bytes needed to tell a compression.
const MAGIC: usize = 8;

/// How an archive as a whole is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    Plain,
    Gzip,
    Zstd,
}

impl Wrapper {
    /// Tells by the first bytes (RFC 1952, RFC 8878).
    pub(super) fn detect(head: &[u8], name: &str) -> Result<Self> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(Error::invalid(
                name,
                "compressed with xz, which is not supported: pipe it through `xz -dc`",
            )),
            [b'B', b'Z', b'h', ..] => Err(Error::invalid(
                name,
                "compressed with bzip2, which is not supported: pipe it through `bzip2 -dc`",
            )),
            _ => Ok(Self::Plain),
        }
    }
}

/// Writes a stream, decompressed, to a temporary file within `limits`.
pub(super) fn spool(mut input: impl Read, name: &str, temp: &TempDir, limits: &Limits) -> Result<File> {
    let failed = |error: io::Error| Error::invalid(name, format!("reading the archive: {error}"));
    let mut head = Vec::with_capacity(MAGIC);
    // A pipe may deliver single bytes.
    input.by_ref().take(MAGIC as u64).read_to_end(&mut head).map_err(failed)?;
    let wrapper = Wrapper::detect(&head, name)?;
    let taken = Rc::new(Cell::new(0));
    let counted = Counted { inner: Cursor::new(head).chain(input), taken: Rc::clone(&taken) };
    let input = BufReader::with_capacity(1 << 20, counted);
    let mut reader: Box<dyn Read + '_> = match wrapper {
        Wrapper::Plain => Box::new(input),
        Wrapper::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Wrapper::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?;
            decoder.window_log_max(limits.layer.zstd_window_log).map_err(failed)?;
            Box::new(decoder)
        }
    };
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
