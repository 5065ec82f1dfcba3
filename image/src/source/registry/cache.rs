//! Caches of BuildKit at a registry (BuildKit, `cache/remotecache`): layers, and a config that says which step made which.
//! The config belongs to a manifest, or stands beside the layers in an index; an image can have it in its own config ("inline").

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Write};

use cloister_layer::digest::Digest;

use super::artifact::Remote;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::oci::{self, BlobRef, Document};
use crate::tree::{Node, Tree, Whole};

/// Media type of the config.
const CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A cache that is there to be read.
#[derive(Debug)]
pub struct RemoteCache {
    remote: Remote,
    top: Digest,
    /// Indexes and manifests, and what was read of images on the way.
    documents: BTreeMap<Digest, Vec<u8>>,
    blobs: BTreeMap<Digest, BlobRef>,
}

impl Remote {
    /// The cache that the reference stands for.
    ///
    /// # Errors
    /// What the registry says, or that it is neither a cache nor an image.
    pub fn cache(self) -> Result<RemoteCache> {
        let (top, content) = self.manifest()?;
        let parts = match Document::parse(&content, &top.media_type, top.digest)? {
            Document::Manifest(manifest) if manifest.config().media_type().as_ref() == CONFIG => {
                [std::slice::from_ref(manifest.config()), manifest.layers()].concat()
            }
            Document::Index(index)
                if index.manifests().iter().any(|entry| entry.media_type().as_ref() == CONFIG) =>
            {
                index.manifests().clone()
            }
            _ => return self.inline(top, content),
        };
        Limits::default().index(format_args!("cache {}", top.digest), parts.len())?;
        let blobs = parts.iter().map(BlobRef::of).collect::<Result<Vec<_>>>()?;
        let blobs = blobs.into_iter().map(|blob| (blob.digest, blob)).collect();
        Ok(RemoteCache { remote: self, documents: [(top.digest, content)].into(), top: top.digest, blobs })
    }

    /// An image, whose config may say how its layers were made.
    fn inline(self, top: BlobRef, content: Vec<u8>) -> Result<RemoteCache> {
        let mut documents = BTreeMap::from([(top.digest, content)]);
        let mut tree = Tree::new(top.clone(), Limits::default())?;
        let mut blobs = BTreeMap::new();
        while let Some(wanted) = tree.wanted().cloned() {
            let content = match documents.entry(wanted.digest) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.read(&wanted)?),
            };
            tree.supply(content)?;
        }
        for child in tree.finish()?.nodes.into_iter().flat_map(|node| node.children) {
            blobs.insert(child.digest, child);
        }
        Ok(RemoteCache { remote: self, top: top.digest, documents, blobs })
    }

    /// A document, whose size the walk has bounded.
    fn read(&self, blob: &BlobRef) -> Result<Vec<u8>> {
        if oci::is_document(&blob.media_type) {
            return self.document(blob);
        }
        let mut content = Vec::new();
        self.copy(blob, &mut content, || true)?;
        Ok(content)
    }
}

impl RemoteCache {
    /// What to ask for first.
    pub fn top(&self) -> Digest {
        self.top
    }

    /// How long a blob of it is, in bytes; `None` when the digest is of another.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let document = self.documents.get(digest).map(|content| content.len() as u64);
        document.or_else(|| self.blobs.get(digest).map(|blob| blob.size))
    }

    /// Copies a blob of it, whose digest is right when this succeeds. Blocks.
    ///
    /// # Errors
    /// What the registry says, or `out`.
    pub fn copy(&self, digest: &Digest, out: &mut impl Write) -> Result<()> {
        if let Some(content) = self.documents.get(digest) {
            let failed = |error: io::Error| Error::invalid(format!("blob {digest}"), error.to_string());
            return out.write_all(content).map_err(failed);
        }
        let blob = self.blobs.get(digest).ok_or_else(|| Error::NoSuchImage(digest.to_string()))?;
        self.remote.copy(blob, out, || true)
    }
}

/// A cache as [`super::push`] takes it, by its manifest.
///
/// # Errors
/// When the document is no manifest of a cache.
pub fn cache(content: &[u8]) -> Result<Whole> {
    let digest = Digest::of(content);
    let subject = || format!("manifest {digest}");
    let top = BlobRef { digest, size: content.len() as u64, media_type: oci::OCI_MANIFEST.to_owned() };
    let manifest = match Document::parse(content, &top.media_type, digest)? {
        Document::Manifest(manifest) if manifest.config().media_type().as_ref() == CONFIG => manifest,
        _ => return Err(Error::invalid(subject(), "not a cache of BuildKit")),
    };
    Limits::default().index(subject(), manifest.layers().len())?;
    let parts = [std::slice::from_ref(manifest.config()), manifest.layers()].concat();
    let children = parts.iter().map(BlobRef::of).collect::<Result<Vec<_>>>()?;
    let mut blobs: BTreeMap<_, _> = children.iter().map(|blob| (blob.digest, blob.size)).collect();
    oci::check_total(&subject(), blobs.values().copied(), Limits::default().total_bytes)?;
    blobs.insert(digest, top.size);
    Ok(Whole { nodes: vec![Node { blob: top, children }], images: Vec::new(), blobs })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cache_is_told_by_its_config() {
        let blob = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let manifest = |config: &str| {
            let manifest = json!({"schemaVersion": 2, "mediaType": oci::OCI_MANIFEST,
                "config": blob(config, b"c"), "layers": [blob(oci::OCI_LAYER, b"l"), blob(oci::OCI_LAYER, b"l")]});
            manifest.to_string().into_bytes()
        };
        let whole = cache(&manifest(CONFIG)).unwrap();
        assert_eq!((whole.nodes.len(), whole.blobs.len(), whole.images.len()), (1, 3, 0));
        assert!(cache(&manifest(oci::OCI_CONFIG)).is_err());
        assert!(cache(b"{}").is_err());
    }
}
