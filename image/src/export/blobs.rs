//! The blobs an image is made of, one by one, for whoever serves them by digest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cloister_layer::digest::Digest;
use serde_json::json;

use super::archive;
use crate::error::{Error, IoContext, Result};
use crate::oci::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::store::{Image, LayerFile, Store};

/// An image as blobs: its manifest, its config, its layers.
#[derive(Debug)]
pub struct Blobs {
    /// Digest of the manifest among them; see [`super::Exported::manifest`] for when it differs from the image's own.
    pub manifest: Digest,
    /// All of them, each once.
    pub blobs: Vec<(Digest, Blob)>,
}

/// The bytes of a blob. Those on disk are held against removal while this value lives.
#[derive(Debug)]
pub struct Blob(Content);

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// Part of a file: where it begins, and its length.
    Part(File, u64, u64),
}

impl Blob {
    pub(super) fn bytes(bytes: Vec<u8>) -> Self {
        Self(Content::Bytes(bytes))
    }

    /// `len` bytes of `file` that begin at `offset`.
    pub fn part(file: File, offset: u64, len: u64) -> Self {
        Self(Content::Part(file, offset, len))
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        match &self.0 {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Part(_, _, len) => *len,
        }
    }

    /// Reads some bytes that begin at `offset`; none at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = left.min(buffer.len());
        match &self.0 {
            Content::Part(file, start, _) if want > 0 => file.read_at(&mut buffer[..want], start + offset),
            Content::Bytes(bytes) if want > 0 => {
                let start = bytes.len() - left;
                buffer[..want].copy_from_slice(&bytes[start..start + want]);
                Ok(want)
            }
            _ => Ok(0),
        }
    }
}

/// What an OCI archive of `image` would hold.
pub fn blobs(store: &Store, image: &Image) -> Result<Blobs> {
    let contents = archive::oci(store, image)?;
    let missing = || Error::invalid(image.record.name.clone(), "an export without a manifest");
    let manifest = contents.manifest.ok_or_else(missing)?;
    let blobs = contents.blobs(store, image)?;
    Ok(Blobs { manifest, blobs })
}

/// An image made of its config and its layers' file systems, lowest first, for which no manifest is known: the layers come
/// uncompressed.
pub fn of_layers(config: Vec<u8>, layers: &[LayerFile]) -> Result<Blobs> {
    let mut blobs = Vec::with_capacity(layers.len() + 2);
    let mut descriptors = Vec::with_capacity(layers.len());
    for layer in layers {
        let range = layer.tar()?;
        let file = layer.file.try_clone().at("open", &layer.path)?;
        descriptors.push(json!({"mediaType": OCI_LAYER, "digest": layer.diff_id, "size": range.len}));
        blobs.push((layer.diff_id, Blob::part(file, range.offset, range.len)));
    }
    let digest = Digest::of(&config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": config.len()},
        "layers": descriptors,
    });
    let manifest = manifest.to_string().into_bytes();
    let of = Digest::of(&manifest);
    blobs.extend([(digest, Blob::bytes(config)), (of, Blob::bytes(manifest))]);
    Ok(Blobs { manifest: of, blobs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_read_from_anywhere() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"..hello..", 0).unwrap();
        for blob in [Blob::bytes(b"hello".to_vec()), Blob::part(file, 2, 5)] {
            let read = |offset, len| {
                let mut buffer = vec![0; len];
                let n = blob.read_at(&mut buffer, offset).unwrap();
                String::from_utf8(buffer[..n].to_vec()).unwrap()
            };
            assert_eq!(blob.size(), 5);
            assert_eq!([read(0, 3), read(3, 9), read(5, 1), read(99, 1)], ["hel", "lo", "", ""]);
        }
    }
}
