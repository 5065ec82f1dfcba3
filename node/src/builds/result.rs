//! What has left the machine, proven to be the image that the build said, for those who take it on from here.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cloister_build::client::{Descriptor, Layout};
use cloister_crds::{BuildReason, Failure, Sizes};
use cloister_image::export::oci_archive;
use cloister_image::source::registry::Blobs;
use cloister_image::{BlobRef, Digest, Error, Limits, Platform, Result, Whole};
use flate2::bufread::MultiGzDecoder;
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

    /// How large it is: for this node's platform, or the first that it was built for. `known` tells the bytes of a layer's tar where
    /// somebody has it; what nobody has is unpacked, to nowhere. Blocks.
    ///
    /// # Errors
    /// When a layer can't be read, or is no archive that a node would take.
    pub fn sizes(&self, known: impl Fn(&Digest) -> Option<u64>) -> io::Result<Option<Sizes>> {
        let here = Platform::host();
        let images = &self.whole.images;
        let Some(image) = images.iter().find(|image| image.platform == here).or(images.first()) else {
            return Ok(None);
        };
        let (mut compressed, mut unpacked) = (0_u64, 0_u64);
        for (blob, diff_id) in &image.layers {
            let tar = known(diff_id).map_or_else(|| self.unpacked(&blob.digest), Ok)?;
            (compressed, unpacked) = (compressed.saturating_add(blob.size), unpacked.saturating_add(tar));
        }
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Some(Sizes {
            compressed_bytes: number(compressed),
            unpacked_bytes: number(unpacked),
            layers: i32::try_from(image.layers.len()).unwrap_or(i32::MAX),
        }))
    }

    /// Bytes of a layer's tar. The exporter was asked for gzip, or for none.
    fn unpacked(&self, digest: &Digest) -> io::Result<u64> {
        let mut blob = BufReader::with_capacity(PIECE, self.open(digest).map_err(io::Error::other)?);
        let mut tar: Box<dyn Read> = match io::BufRead::fill_buf(&mut blob)? {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(blob)),
            _ => Box::new(blob),
        };
        let most = cloister_layer::Limits::default().uncompressed_bytes;
        let mut within = (&mut tar).take(most);
        let bytes = io::copy(&mut within, &mut io::sink())?;
        match tar.read(&mut [0])? {
            0 => Ok(bytes),
            _ => Err(io::Error::other(format!("a layer has more than {most} bytes"))),
        }
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

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::json;

    use super::*;

    /// An image of one layer, as a build writes it.
    pub fn one_layer(folder: &Path, unwanted: &CancellationToken, layer: &[u8], kind: &str) -> Image {
        let layout = Layout::open(folder, 0).unwrap();
        let blob = |kind: &str, bytes: &[u8]| -> Descriptor {
            let digest = Digest::of(bytes);
            fs::write(folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
            let media_type = format!("application/vnd.oci.image.{kind}");
            Descriptor { media_type, digest, size: bytes.len() as u64 }
        };
        let json = |of: &Descriptor| json!({"mediaType": of.media_type, "digest": of.digest.to_string(), "size": of.size});
        let layer = json(&blob(&format!("layer.v1.{kind}"), layer));
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = json(&blob("config.v1+json", config.to_string().as_bytes()));
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer],
            "mediaType": "application/vnd.oci.image.manifest.v1+json"});
        let top = blob("manifest.v1+json", manifest.to_string().as_bytes());
        Image::open(layout, &top, unwanted.clone()).unwrap()
    }

    #[test]
    fn a_result_that_no_node_takes_says_how_large_it_is() {
        let tar = vec![7; 100_000];
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).unwrap();
        let gzip = gzip.finish().unwrap();
        for (layer, kind) in [(&tar, "tar"), (&gzip, "tar+gzip")] {
            let folder = tempfile::tempdir().unwrap();
            let unwanted = CancellationToken::new();
            let image = one_layer(folder.path(), &unwanted, layer, kind);
            let compressed_bytes = layer.len() as i64;
            let sizes = |unpacked_bytes| Some(Sizes { compressed_bytes, unpacked_bytes, layers: 1 });
            assert_eq!(image.sizes(|_| None).unwrap(), sizes(100_000));
            // Somebody has it unpacked: nothing is read.
            unwanted.cancel();
            assert_eq!(image.sizes(|_| Some(5)).unwrap(), sizes(5));
            assert!(image.sizes(|_| None).is_err());
        }
    }

    #[test]
    fn a_layer_that_breaks_off_has_no_size() {
        let folder = tempfile::tempdir().unwrap();
        let image = one_layer(folder.path(), &CancellationToken::new(), &[0x1f, 0x8b, 8, 0], "tar+gzip");
        assert!(image.sizes(|_| None).is_err());
    }
}
