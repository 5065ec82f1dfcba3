//! What has left the machine, proven to be the image that the build said, for those who take it on from here.

use std::fs::File;
use std::io::{self, Read};

use cloister_crds::{BuildReason, Failure};
use cloister_image::source::Built;
use cloister_image::source::registry::Blobs;
use cloister_image::{Digest, Error, Result, Whole};
use tokio_util::sync::CancellationToken;

use super::failure::failure;

/// The image. Once it is not wanted any more nothing can be read of it, which ends whoever is at work with it on a thread
/// of its own.
#[derive(Debug)]
pub struct Image {
    built: Built,
    unwanted: CancellationToken,
}

impl Image {
    /// Reads the archive whole and compares every digest.
    ///
    /// # Errors
    /// When it is not the image with this digest.
    pub fn open(archive: File, digest: &Digest, unwanted: CancellationToken) -> Result<Self, Failure> {
        let lie = |error: Error| failure(BuildReason::DigestMismatch, format!("the result: {error}"));
        Ok(Self { built: Built::open(archive, digest).map_err(lie)?, unwanted })
    }

    /// What it is made of.
    pub fn whole(&self) -> &Whole {
        self.built.whole()
    }
}

impl Blobs for Image {
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>> {
        until(&self.unwanted, &self.built, digest)
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
