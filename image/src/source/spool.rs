//! Streams and compressed archives, made into a file that can be read anywhere.
//!
//! An archive may list its images last, and its layers in any order. Instead of keeping half of it in memory, what
//! cannot seek is written once to the store's temporary folder, decompressed, and read from there.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use crate::error::{Error, IoContext, Result};
use crate::store::TempDir;

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

/// Writes a stream, decompressed, to a temporary file of at most `limit` bytes.
pub(super) fn spool(
    input: impl Read,
    name: &str,
    temp: &TempDir,
    limit: u64,
    window_log: u32,
) -> Result<File> {
    let mut input = BufReader::with_capacity(1 << 20, input);
    let wrapper =
        Wrapper::detect(peek(&mut input).map_err(|error| Error::invalid(name, error.to_string()))?, name)?;
    let mut reader: Box<dyn Read + '_> = match wrapper {
        Wrapper::Plain => Box::new(input),
        Wrapper::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Wrapper::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                .map_err(|error| Error::invalid(name, error.to_string()))?;
            decoder.window_log_max(window_log).map_err(|error| Error::invalid(name, error.to_string()))?;
            Box::new(decoder)
        }
    };
    let (mut file, path) = temp.file("archive")?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::invalid(name, format!("reading the archive: {error}"))),
        };
        total += n as u64;
        if total > limit {
            return Err(Error::Limit { subject: name.to_owned(), got: total, limit, unit: "bytes" });
        }
        file.write_all(&buffer[..n]).at("write", &path)?;
    }
}

/// Fills the buffer far enough to see the magic number, also from a pipe that delivers single bytes.
fn peek<R: Read>(input: &mut BufReader<R>) -> io::Result<&[u8]> {
    use std::io::BufRead;
    let head = input.fill_buf()?;
    // A pipe's first read holds at least one header in every writer we know; a shorter one is read as plain and refused.
    Ok(&head[..head.len().min(8)])
}
