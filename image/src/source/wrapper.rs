//! How an archive as a whole is compressed.

use std::io::{self, BufReader, Cursor, Read};

use crate::error::{Error, Result};

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

/// What `input` holds without its compression, which its first bytes tell: gzip, zstd or none. The caller bounds what it
/// reads. `window_log` is the largest zstd window that is taken, as a power of two.
///
/// # Errors
/// When the beginning can't be read, or is of another compression.
pub fn unpacked<'a>(mut input: impl Read + 'a, name: &str, window_log: u32) -> Result<Box<dyn Read + 'a>> {
    let failed = |error: io::Error| Error::invalid(name, format!("reading the archive: {error}"));
    let mut head = Vec::with_capacity(MAGIC);
    // A pipe may deliver single bytes.
    input.by_ref().take(MAGIC as u64).read_to_end(&mut head).map_err(failed)?;
    let wrapper = Wrapper::detect(&head, name)?;
    let input = BufReader::with_capacity(1 << 20, Cursor::new(head).chain(input));
    Ok(match wrapper {
        Wrapper::Plain => Box::new(input),
        Wrapper::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Wrapper::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?;
            decoder.window_log_max(window_log).map_err(failed)?;
            Box::new(decoder)
        }
    })
}
