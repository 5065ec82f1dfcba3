//! The two ends of a decompressor, and the buffers that travel through them.

use super::Stop;

/// How far back DEFLATE reaches, bytes.
pub const WINDOW: usize = 32 << 10;
/// Decompressed bytes handed on at once: small enough to be hashed from the cache, large against the window copied along.
pub const CHUNK: usize = 512 << 10;
/// Length of every buffer of decompressed bytes: the window in front, the chunk behind.
pub const BUFFER: usize = WINDOW + CHUNK;

/// A buffer of which `start..end` counts. The buffer keeps its length, so that it need not be cleared for reuse.
#[derive(Debug, Default)]
pub struct Piece {
    /// The buffer.
    pub bytes: Vec<u8>,
    /// First byte that counts.
    pub start: usize,
    /// End of the bytes that count.
    pub end: usize,
}

impl Piece {
    /// The bytes that count.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// Where compressed bytes come from.
pub trait Source {
    /// Takes back `used` and gives the next piece, never an empty one; `None` at the end of the blob.
    ///
    /// # Errors
    /// The blob cannot be had, or is not what was promised.
    fn next(&mut self, used: Piece) -> Result<Option<Piece>, Stop>;
}

/// Where decompressed bytes go.
pub trait Output {
    /// Hands on a piece and gives a buffer of [`BUFFER`] bytes, their content arbitrary.
    ///
    /// # Errors
    /// Too many bytes, or nobody takes them.
    fn exchange(&mut self, full: Piece) -> Result<Vec<u8>, Stop>;
}
