//! Archives of an image that is in no store, byte for byte from its blobs, wherever those are.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

use cloister_layer::digest::{Digest, Hasher};
use oci_spec::image::{Descriptor, ImageIndexBuilder, MediaType};
use serde_json::json;

use super::archive::{Checked, append, blob_path};
use crate::error::{Error, IoContext, Result};
use crate::oci::BlobRef;
use crate::reference::Reference;
use crate::source::registry::Blobs;
use crate::tree::Whole;

/// Writes an OCI layout in a tar with everything that belongs to the image: platforms, attestations.
///
/// # Errors
/// When a blob is not there or not what it was, or `out` does not take it.
pub fn oci_archive(image: &Whole, blobs: &dyn Blobs, names: &[Reference], out: &mut dyn Write) -> Result<()> {
    let top = image.nodes.first().ok_or_else(|| bad("an image without a manifest"))?;
    let mut archive = Archive::begin(blobs, out, &top.blob, names)?;
    // What explains the others comes first.
    let nodes = image.nodes.iter().map(|node| (node.blob.digest, node.blob.size));
    let is_node = |digest: &Digest| image.nodes.iter().any(|node| node.blob.digest == *digest);
    let others = image.blobs.iter().filter(|(digest, _)| !is_node(digest));
    for (digest, size) in nodes.chain(others.map(|(digest, size)| (*digest, *size))) {
        archive.blob(&digest, size)?;
    }
    archive.end()
}

/// Writes what `docker load` reads, as a recent `docker save` does: an OCI layout of the one image that can run, and Docker's own
/// list of it. Layers stay compressed; Docker inflates them whatever the version.
///
/// # Errors
/// As for [`oci_archive`], and when the image is for several platforms: Docker's list knows of none.
pub fn docker_archive(
    image: &Whole,
    blobs: &dyn Blobs,
    names: &[Reference],
    out: &mut dyn Write,
) -> Result<()> {
    let [one] = image.images.as_slice() else {
        let count = image.images.len();
        return Err(bad(&format!("a docker archive holds one platform's image, and there are {count}")));
    };
    let path = |blob: &BlobRef| blob_path(&blob.digest);
    let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
    let layers: Vec<String> = one.layers.iter().map(|(blob, _)| path(blob)).collect();
    let list = json!([{"Config": path(&one.config), "RepoTags": tags, "Layers": layers}]);
    let mut archive = Archive::begin(blobs, out, &one.manifest, names)?;
    archive.bytes("manifest.json", list.to_string().as_bytes())?;
    let mut all = vec![&one.manifest, &one.config];
    all.extend(one.layers.iter().map(|(blob, _)| blob));
    let mut written = std::collections::BTreeSet::new();
    for blob in all {
        if written.insert(blob.digest) {
            archive.blob(&blob.digest, blob.size)?;
        }
    }
    archive.end()
}

struct Archive<'a> {
    blobs: &'a dyn Blobs,
    builder: tar::Builder<&'a mut dyn Write>,
}

impl<'a> Archive<'a> {
    /// Marker and index, which has `top` under every name.
    fn begin(
        blobs: &'a dyn Blobs,
        out: &'a mut dyn Write,
        top: &BlobRef,
        names: &[Reference],
    ) -> Result<Self> {
        let digest: oci_spec::image::Digest = top
            .digest
            .to_string()
            .parse()
            .map_err(|error: oci_spec::OciSpecError| bad(&error.to_string()))?;
        let plain = Descriptor::new(MediaType::from(top.media_type.as_str()), top.size, digest);
        let named = |name: &Reference| {
            let mut entry = plain.clone();
            let full = name.to_string();
            entry.set_annotations(Some(HashMap::from([
                ("org.opencontainers.image.ref.name".to_owned(), name.tag().unwrap_or(&full).to_owned()),
                ("io.containerd.image.name".to_owned(), full),
            ])));
            entry
        };
        let mut entries: Vec<Descriptor> = names.iter().map(named).collect();
        if entries.is_empty() {
            entries.push(plain.clone());
        }
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(entries)
            .build()
            .map_err(|error| bad(&error.to_string()))?;
        let index = serde_json::to_vec(&index).map_err(|error| bad(&error.to_string()))?;
        let mut archive = Self { blobs, builder: tar::Builder::new(out) };
        archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.bytes("index.json", &index)?;
        Ok(archive)
    }

    fn bytes(&mut self, path: &str, content: &[u8]) -> Result<()> {
        append(&mut self.builder, path, content.len() as u64, content).at("write", target())
    }

    /// A blob, whose digest is checked on its way.
    fn blob(&mut self, digest: &Digest, size: u64) -> Result<()> {
        let content = self.blobs.open(digest)?.take(size);
        let mut checked = Checked { inner: content, hasher: Hasher::new() };
        append(&mut self.builder, &blob_path(digest), size, &mut checked).at("write", target())?;
        let got = checked.hasher.finish();
        if got == *digest {
            return Ok(());
        }
        Err(Error::Digest { subject: format!("blob {digest}"), got, expected: *digest })
    }

    fn end(mut self) -> Result<()> {
        self.builder.finish().at("write", target())
    }
}

fn target() -> &'static Path {
    Path::new("the archive")
}

fn bad(why: &str) -> Error {
    Error::invalid("archive", why)
}
