//! Decompression on a thread of its own: input is pulled, output pushed, both in recycled buffers.

mod deflate;
mod gzip;
mod huffman;
mod io;
mod zstd;

pub use gzip::gunzip;
pub use io::{BUFFER, CHUNK, Output, Piece, Source};
pub use zstd::unzstd;

/// Why a compressed stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message is its documentation
pub enum Damage {
    #[error("it ends too early")]
    Truncated,
    #[error("the header is malformed")]
    Header,
    #[error("unknown compression method or flags")]
    Method,
    #[error("a header field is too long")]
    HeaderTooLong,
    #[error("a block has the reserved type")]
    BlockType,
    #[error("a stored block's length does not match its complement")]
    StoredLength,
    #[error("a Huffman code is over- or under-subscribed")]
    Code,
    #[error("a Huffman code has no end-of-block symbol")]
    NoEnd,
    #[error("a symbol or length code is not valid")]
    Symbol,
    #[error("a match reaches back before the start of the data")]
    Distance,
    #[error("the length in the trailer is wrong")]
    Length,
    #[error("the checksum in the trailer is wrong")]
    Crc,
    #[error("other data follows the last member")]
    TrailingData,
}

/// An error of one of the neighbours, or damage found here.
#[derive(Debug)]
pub enum Stop {
    /// The stream is damaged.
    Damage(Damage),
    /// The stream is damaged, in the words of the zstd decoder.
    Zstd(String),
    /// Input could not be had, or output was not taken.
    Neighbour(crate::error::Error),
    /// The other end of a channel is gone; it knows why.
    Abandoned,
}

impl From<Damage> for Stop {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}
