//! What has left the machine, proven to be the image that the build said, for those who take it on from here.

use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cloister_build::client::{Descriptor, Layout};
use cloister_crds::{BuildReason, Failure};
use cloister_image::export::oci_archive;
use cloister_image::source::registry::Blobs;
use cloister_image::{BlobRef, Digest, Error, Limits, Result, Whole};
use tokio_util::sync::CancellationToken;

use super::failure::failure;

/// Bytes written at a time.
const PIECE: usize = 1 << 20;

/// The image. Once it is not wanted any more nothing can be read of it, which ends whoever is at work with it on a thread
/// of its own.
#[derive(Debug)]
pub struct Image {
    blobs: Layout,
    whole: Whole,
    unwanted: CancellationToken,
}

impl Image {
    /// Walks the image that the build says it has written; each blob got its digest compared when it came.
    ///
    /// # Errors
    /// When it is none, or a part of it is missing.
    pub fn open(blobs: Layout, top: &Descriptor, unwanted: CancellationToken) -> Result<Self, Failure> {
        let lie = |error: Error| failure(BuildReason::DigestMismatch, format!("the result: {error}"));
        let Descriptor { media_type, digest, size } = top.clone();
        let whole =
            Whole::read(BlobRef { digest, size, media_type }, &blobs, Limits::default()).map_err(lie)?;
        blobs.check(&whole).map_err(|error| failure(BuildReason::DigestMismatch, error.to_string()))?;
        Ok(Self { blobs, whole, unwanted })
    }

    /// What it is made of.
    pub fn whole(&self) -> &Whole {
        &self.whole
    }

    /// The image as an OCI archive, for as long as it is read; a failure ends it early.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn stream(self: &Arc<Self>) -> io::Result<tokio::net::UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let image = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(PIECE, ours);
            let written = oci_archive(&image.whole, &*image, &[], &mut out);
            let flushed = out.flush();
            if let (Err(error), _) = (written, flushed) {
                tracing::debug!("a result was not read to its end: {error}");
            }
        });
        tokio::net::UnixStream::from_std(theirs)
    }
}

impl Blobs for Image {
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>> {
        until(&self.unwanted, &self.blobs, digest)
    }
}

/// Any blobs for as long as they are wanted.
pub struct Wanted<'a> {
    blobs: &'a dyn Blobs,
    unwanted: &'a CancellationToken,
}

impl<'a> Wanted<'a> {
    /// Those of `blobs`.
    pub fn new(blobs: &'a dyn Blobs, unwanted: &'a CancellationToken) -> Self {
        Self { blobs, unwanted }
    }
}

impl Blobs for Wanted<'_> {
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>> {
        until(self.unwanted, self.blobs, digest)
    }
}

fn until<'a>(
    unwanted: &'a CancellationToken,
    blobs: &'a dyn Blobs,
    digest: &Digest,
) -> Result<Box<dyn Read + Send + 'a>> {
    if unwanted.is_cancelled() {
        return Err(Error::NoSuchImage(format!("{digest}, which is not wanted any more")));
    }
    Ok(Box::new(Content { content: blobs.open(digest)?, unwanted }))
}

struct Content<'a> {
    content: Box<dyn Read + Send + 'a>,
    unwanted: &'a CancellationToken,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.unwanted.is_cancelled() {
            true => Err(io::Error::other("not wanted any more")),
            false => self.content.read(buffer),
        }
    }
}
