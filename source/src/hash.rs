//! Hashing what is written.

use std::io::{self, Write};

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
