//! A layer's blob: what is said about it, and how it is compressed.

use crate::digest::Digest;
use crate::error::Error;

/// What the image says about a layer. Everything that is given is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of the blob, from its descriptor.
    pub digest: Option<Digest>,
    /// Bytes of the blob, from its descriptor.
    pub size: Option<u64>,
    /// SHA-256 of the tar, from the image configuration.
    pub diff_id: Option<Digest>,
}

/// How a blob is compressed; found from its first bytes, not from its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
}

impl Compression {
    /// Name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) fn detect(head: &[u8]) -> Result<Self, Error> {
        let unsupported =
            |format| Err(Error::Compression { format, problem: "not supported for layers".into() });
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => unsupported("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
            _ => Ok(Self::None),
        }
    }
}
