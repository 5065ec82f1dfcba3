//! Hashing what is written.

use std::io::{self, Seek, SeekFrom, Write};

use cloister_image::Digest;
use cloister_layer::digest::Hasher;

/// Passes bytes on, and knows their digest.
#[derive(Debug)]
pub(crate) struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new() }
    }

    /// What was written to, and the digest of it all.
    pub(crate) fn end(self) -> (W, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<W: Seek> Hashing<W> {
    /// Goes on at another place, which is hashed as well.
    pub(crate) fn seek(&mut self, to: u64) -> io::Result<()> {
        self.hasher.update(&to.to_le_bytes());
        self.inner.seek(SeekFrom::Start(to)).map(drop)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Nanoseconds for the time of a file with these bytes.
///
/// A builder that has a file of the same name, size, time and mode from an earlier build does not ask for it again. Times
/// of archives and commits are of whole seconds, and often all the same; so that equal times mean equal bytes, the rest
/// of the second is made of the bytes. Layers of images keep whole seconds.
pub(crate) fn fraction(digest: &Digest) -> u32 {
    let part = digest
        .hex()
        .bytes()
        .take(8)
        .fold(0_u32, |sum, digit| sum << 4 | char::from(digit).to_digit(16).unwrap_or_default());
    part % 1_000_000_000
}
