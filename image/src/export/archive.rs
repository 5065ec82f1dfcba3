//! OCI and docker archives, from kept blobs and from the tars inside the layer file systems.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use cloister_layer::digest::{Digest, Hasher};
use cloister_layer::erofs::TarRange;
use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType};
use serde_json::json;

use super::blobs::Blob;
use crate::error::{Error, IoContext, Result};
use crate::limits::Limits;
use crate::oci::{OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;
use crate::source::Section;
use crate::store::{Image, Store};

/// Where an OCI layout keeps its blobs.
const BLOBS: &str = "blobs/sha256/";

/// Everything that goes into an archive.
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    pub(super) manifest: Option<Digest>,
}

/// One file of an archive.
pub(super) struct Entry {
    path: String,
    source: Source,
}

enum Source {
    Bytes(Vec<u8>),
    /// A blob kept in the store.
    Blob(Digest),
    /// The tar inside a layer, by the layer's place in the image.
    Tar(usize),
}

impl Contents {
    /// The blobs among the entries.
    pub(super) fn blobs(self, store: &Store, image: &Image) -> Result<Vec<(Digest, Blob)>> {
        let mut blobs = Vec::new();
        for Entry { path, source } in self.entries {
            let Some(hex) = path.strip_prefix(BLOBS) else { continue };
            let digest = format!("sha256:{hex}").parse().map_err(|error| bad(image, &error))?;
            let blob = match source {
                Source::Bytes(bytes) => Blob::bytes(bytes),
                Source::Blob(digest) => {
                    let file = kept(store, image, &digest)?;
                    let len = file.metadata().at("read", Path::new(&path))?.len();
                    Blob::part(file, 0, len)
                }
                Source::Tar(index) => {
                    let (file, range) = tar_range(image, index)?;
                    Blob::part(file, range.offset, range.len)
                }
            };
            blobs.push((digest, blob));
        }
        Ok(blobs)
    }
}

fn bytes(path: impl Into<String>, bytes: Vec<u8>) -> Entry {
    Entry { path: path.into(), source: Source::Bytes(bytes) }
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

/// An OCI layout. Layers whose compressed blob is gone come uncompressed, under a manifest that says so.
pub(super) fn oci(store: &Store, image: &Image) -> Result<Contents> {
    let record = &image.record;
    let limits = Limits::default();
    let original = store.read_blob(&record.manifest, limits.manifest)?;
    let config = store.read_blob(&record.config, limits.config)?;
    let mut manifest: ImageManifest =
        serde_json::from_slice(&original).map_err(|error| bad(image, &error))?;
    let mut entries = Vec::new();
    let mut written = HashSet::new();
    let mut changed = false;
    for (index, layer) in record.layers.iter().enumerate() {
        let (digest, source) = if layer.blob == layer.diff_id {
            (layer.diff_id, Source::Tar(index))
        } else if store.open_blob(&layer.blob)?.is_some() {
            (layer.blob, Source::Blob(layer.blob))
        } else {
            let tar = tar_of(image, index)?;
            if let Some(slot) = manifest.layers_mut().get_mut(index) {
                *slot = descriptor(image, OCI_LAYER, tar.len(), &layer.diff_id)?;
                changed = true;
            }
            (layer.diff_id, Source::Tar(index))
        };
        if written.insert(digest) {
            entries.push(Entry { path: blob_path(&digest), source });
        }
    }
    let (manifest_bytes, media_type) = if changed {
        // Uncompressed layers have no docker media type in common use; the OCI form is read everywhere.
        manifest.set_media_type(Some(MediaType::ImageManifest));
        let mut config_descriptor = manifest.config().clone();
        config_descriptor.set_media_type(MediaType::ImageConfig);
        manifest.set_config(config_descriptor);
        (serde_json::to_vec(&manifest).map_err(|error| bad(image, &error))?, OCI_MANIFEST)
    } else {
        (original, record.media_type.as_str())
    };
    let digest = Digest::of(&manifest_bytes);
    let mut named = descriptor(image, media_type, manifest_bytes.len() as u64, &digest)?;
    let tag = record.name.parse::<Reference>().ok().and_then(|name| name.tag().map(str::to_owned));
    named.set_annotations(Some(HashMap::from([
        ("io.containerd.image.name".to_owned(), record.name.clone()),
        ("org.opencontainers.image.ref.name".to_owned(), tag.unwrap_or_else(|| record.name.clone())),
    ])));
    let index: ImageIndex = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![named])
        .build()
        .map_err(|error| bad(image, &error))?;
    // Small files first: a reader of the stream knows what is coming.
    let mut all = vec![
        bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        bytes("index.json", serde_json::to_vec(&index).map_err(|error| bad(image, &error))?),
        bytes(blob_path(&digest), manifest_bytes),
        bytes(blob_path(&record.config), config),
    ];
    all.append(&mut entries);
    Ok(Contents { entries: all, manifest: Some(digest) })
}

/// What `docker load` reads: uncompressed layers, `manifest.json`.
pub(super) fn docker(store: &Store, image: &Image) -> Result<Contents> {
    let record = &image.record;
    let config_path = format!("{}.json", record.config.hex());
    let layer_path = |diff_id: &Digest| format!("{}.tar", diff_id.hex());
    let paths: Vec<String> = record.layers.iter().map(|layer| layer_path(&layer.diff_id)).collect();
    // Docker refuses names with a digest here; such an image is loaded by its id.
    let tags: Vec<String> = match record.name.parse::<Reference>() {
        Ok(name) if name.digest().is_none() => vec![name.familiar()],
        _ => Vec::new(),
    };
    let list = json!([{"Config": config_path, "RepoTags": tags, "Layers": paths}]);
    let mut entries = vec![
        bytes("manifest.json", serde_json::to_vec(&list).map_err(|error| bad(image, &error))?),
        bytes(config_path, store.read_blob(&record.config, Limits::default().config)?),
    ];
    let mut written = HashSet::new();
    for (index, layer) in record.layers.iter().enumerate() {
        if written.insert(layer.diff_id) {
            entries.push(Entry { path: layer_path(&layer.diff_id), source: Source::Tar(index) });
        }
    }
    Ok(Contents { entries, manifest: None })
}

/// Writes the archive. Every blob is checked once more on its way out.
pub(super) fn write(store: &Store, image: &Image, entries: &[Entry], out: &mut dyn Write) -> Result<()> {
    let target = Path::new("the archive");
    let mut builder = tar::Builder::new(out);
    for entry in entries {
        match &entry.source {
            Source::Bytes(content) => {
                append(&mut builder, &entry.path, content.len() as u64, content.as_slice())
                    .at("write", target)?
            }
            Source::Blob(digest) => {
                let file = kept(store, image, digest)?;
                let len = file.metadata().at("read", target)?.len();
                copy(&mut builder, &entry.path, Section::new(Arc::new(file), 0, len), digest)?;
            }
            Source::Tar(index) => {
                copy(&mut builder, &entry.path, tar_of(image, *index)?, &image.record.layers[*index].diff_id)?
            }
        }
    }
    builder.finish().at("write", target)
}

fn copy(
    builder: &mut tar::Builder<&mut dyn Write>,
    path: &str,
    section: Section,
    digest: &Digest,
) -> Result<()> {
    let len = section.len();
    let mut checked = Checked { inner: section, hasher: Hasher::new() };
    append(builder, path, len, &mut checked).at("write", Path::new("the archive"))?;
    let got = checked.hasher.finish();
    if got == *digest {
        return Ok(());
    }
    Err(Error::Digest { subject: format!("{path}, damaged in the store"), got, expected: *digest })
}

/// One regular file.
pub(super) fn append(
    builder: &mut tar::Builder<&mut dyn Write>,
    path: &str,
    len: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(len);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    builder.append_data(&mut header, path, content)
}

fn kept(store: &Store, image: &Image, digest: &Digest) -> Result<File> {
    store.open_blob(digest)?.ok_or_else(|| bad(image, &format!("blob {digest} was removed meanwhile")))
}

fn tar_of(image: &Image, index: usize) -> Result<Section> {
    let (file, range) = tar_range(image, index)?;
    Ok(Section::new(Arc::new(file), range.offset, range.len))
}

fn tar_range(image: &Image, index: usize) -> Result<(File, TarRange)> {
    let layer = image.layer_files().get(index).ok_or_else(|| bad(image, &"a layer is missing"))?;
    Ok((layer.file.try_clone().at("open", &layer.path)?, layer.tar()?))
}

fn descriptor(image: &Image, media_type: &str, size: u64, digest: &Digest) -> Result<Descriptor> {
    let digest: oci_spec::image::Digest =
        digest.to_string().parse().map_err(|error: oci_spec::OciSpecError| bad(image, &error))?;
    Ok(Descriptor::new(MediaType::from(media_type), size, digest))
}

fn bad(image: &Image, why: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("export of {}", image.record.name), why.to_string())
}

/// Hashes what passes.
pub(super) struct Checked<R> {
    pub(super) inner: R,
    pub(super) hasher: Hasher,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
