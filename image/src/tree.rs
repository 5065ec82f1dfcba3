//! Everything that belongs to an image: a walk from its index or manifest to the last blob, without any I/O of its own.
//!
//! Whoever walks reads the documents that [`Tree::wanted`] names, wherever they are, and hands them to [`Tree::supply`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;

use cloister_layer::digest::Digest;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use crate::config::ParsedConfig;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::oci::{self, BlobRef, Document};
use crate::platform::Platform;
use crate::source::registry::Blobs;

/// Indexes in indexes, counted from the top.
const MAX_DEPTH: usize = 4;
/// Indexes, manifests and configs of one image, all platforms and attestations together.
const MAX_DOCUMENTS: usize = 256;

/// A walk that is not over.
#[derive(Debug)]
pub struct Tree {
    limits: Limits,
    todo: VecDeque<Todo>,
    seen: BTreeSet<Digest>,
    /// Bytes of all blobs so far.
    total: u64,
    whole: Whole,
}

/// A complete image.
#[derive(Debug, Default)]
pub struct Whole {
    /// Indexes and manifests, each before what it points to.
    pub nodes: Vec<Node>,
    /// The images that can run, in the order of their index.
    pub images: Vec<Runnable>,
    /// Every blob, the top included, with its size in bytes.
    pub blobs: BTreeMap<Digest, u64>,
}

/// An index or manifest and what it points to, in its order; of a manifest the config is first.
#[derive(Debug)]
pub struct Node {
    /// The document itself.
    pub blob: BlobRef,
    /// What must be there for it to be of use.
    pub children: Vec<BlobRef>,
}

/// One image for one platform.
#[derive(Debug, Clone)]
pub struct Runnable {
    /// Its manifest.
    pub manifest: BlobRef,
    /// Its config; its digest is the image's ID in the CRI.
    pub config: BlobRef,
    /// What it was built for.
    pub platform: Platform,
    /// Lowest first, with the digest of the uncompressed tar.
    pub layers: Vec<(BlobRef, Digest)>,
}

#[derive(Debug)]
struct Todo {
    blob: BlobRef,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An index or a manifest; `attached` ones (attestations, signatures) need not be images.
    Document { depth: usize, attached: bool },
    /// The config of an image with these layers.
    Config { manifest: BlobRef, layers: Vec<BlobRef> },
}

impl Tree {
    /// Starts at an index or manifest.
    ///
    /// # Errors
    /// When the top is not of such a type, or too large for one.
    pub fn new(top: BlobRef, limits: Limits) -> Result<Self> {
        let whole = Whole::default();
        let mut tree = Self { limits, todo: VecDeque::new(), seen: BTreeSet::new(), total: 0, whole };
        tree.count(&top)?;
        tree.push(top, Kind::Document { depth: 0, attached: false })?;
        Ok(tree)
    }

    /// The next document to read, if the walk is not over.
    pub fn wanted(&self) -> Option<&BlobRef> {
        self.todo.front().map(|todo| &todo.blob)
    }

    /// Takes the content of the document that [`Tree::wanted`] named.
    ///
    /// # Errors
    /// When it is not what its descriptor says, or not what an image is made of.
    pub fn supply(&mut self, content: &[u8]) -> Result<()> {
        let Some(Todo { blob, kind }) = self.todo.pop_front() else { return Ok(()) };
        blob.verify("document", content)?;
        match kind {
            Kind::Document { depth, attached } => {
                let node = match Document::parse(content, &blob.media_type, blob.digest)? {
                    Document::Index(index) => self.index(blob, &index, depth, attached)?,
                    Document::Manifest(manifest) => self.manifest(blob, &manifest, attached)?,
                };
                self.whole.nodes.push(node);
                Ok(())
            }
            Kind::Config { manifest, layers } => self.config(blob, content, manifest, layers),
        }
    }

    /// Ends the walk.
    ///
    /// # Errors
    /// When documents are missing, or nothing in the image can run.
    pub fn finish(self) -> Result<Whole> {
        if let Some(blob) = self.wanted() {
            return Err(Error::invalid(format!("document {}", blob.digest), "not read"));
        }
        if self.whole.images.is_empty() {
            let top = self.whole.nodes.first().map(|node| node.blob.digest.to_string()).unwrap_or_default();
            return Err(Error::invalid(format!("image {top}"), "holds nothing that can run"));
        }
        Ok(self.whole)
    }

    fn index(&mut self, blob: BlobRef, index: &ImageIndex, depth: usize, attached: bool) -> Result<Node> {
        let entries = index.manifests();
        self.limits.index(format_args!("index {}", blob.digest), entries.len())?;
        if depth == MAX_DEPTH {
            return Err(Error::invalid(
                format!("index {}", blob.digest),
                format!("more than {MAX_DEPTH} indexes in one another"),
            ));
        }
        let mut children = Vec::new();
        for entry in entries {
            let child = BlobRef::of(entry)?;
            self.count(&child)?;
            let attached = attached || is_attached(entry);
            self.push(child.clone(), Kind::Document { depth: depth + 1, attached })?;
            children.push(child);
        }
        Ok(Node { blob, children })
    }

    fn manifest(&mut self, blob: BlobRef, manifest: &ImageManifest, attached: bool) -> Result<Node> {
        let config = BlobRef::of(manifest.config())?;
        let count = manifest.layers().len();
        if count > self.limits.layers {
            return Err(Error::Limit {
                subject: format!("manifest {}", blob.digest),
                got: count as u64,
                limit: self.limits.layers as u64,
                unit: "layers",
            });
        }
        let layers: Vec<BlobRef> = manifest.layers().iter().map(BlobRef::of).collect::<Result<_>>()?;
        for child in layers.iter().chain([&config]) {
            self.count(child)?;
        }
        let children = [std::slice::from_ref(&config), &layers].concat();
        if !attached {
            if !matches!(config.media_type.as_str(), oci::OCI_CONFIG | oci::DOCKER_CONFIG) {
                return Err(Error::invalid(
                    format!("manifest {}", blob.digest),
                    format!("its config is of type {}, not an image's", oci::short(&config.media_type)),
                ));
            }
            layers.iter().try_for_each(oci::check_layer_type)?;
            self.push(config, Kind::Config { manifest: blob.clone(), layers })?;
        }
        Ok(Node { blob, children })
    }

    fn config(
        &mut self,
        config: BlobRef,
        content: &[u8],
        manifest: BlobRef,
        layers: Vec<BlobRef>,
    ) -> Result<()> {
        let parsed = ParsedConfig::parse(content, &config.digest)?;
        if parsed.diff_ids.len() != layers.len() {
            return Err(Error::invalid(
                format!("manifest {}", manifest.digest),
                format!("{} layers, but its config lists {} diff IDs", layers.len(), parsed.diff_ids.len()),
            ));
        }
        let layers = layers.into_iter().zip(parsed.diff_ids).collect();
        self.whole.images.push(Runnable { manifest, config, platform: parsed.platform, layers });
        Ok(())
    }

    /// Notes a blob; all that name it have to agree on its size.
    fn count(&mut self, blob: &BlobRef) -> Result<()> {
        match self.whole.blobs.insert(blob.digest, blob.size) {
            Some(size) if size != blob.size => Err(Error::invalid(
                format!("blob {}", blob.digest),
                format!("said to be {size} and {} bytes long", blob.size),
            )),
            Some(_) => Ok(()),
            None => {
                let sizes = [self.total, blob.size];
                self.total = oci::check_total("image", sizes.into_iter(), self.limits.total_bytes)?;
                Ok(())
            }
        }
    }

    fn push(&mut self, blob: BlobRef, kind: Kind) -> Result<()> {
        let limit = match kind {
            Kind::Document { .. } if !oci::is_document(&blob.media_type) => {
                return Err(Error::invalid(
                    format!("blob {}", blob.digest),
                    format!("of type {}, neither index nor manifest", oci::short(&blob.media_type)),
                ));
            }
            Kind::Document { .. } => self.limits.manifest,
            Kind::Config { .. } => self.limits.config,
        };
        oci::within("document", &blob, limit)?;
        let is_config = matches!(kind, Kind::Config { .. });
        // Two images may share a config; an index that names a manifest twice gains nothing by it.
        if !self.seen.insert(blob.digest) && !is_config {
            return Ok(());
        }
        if self.seen.len() + self.todo.len() > MAX_DOCUMENTS {
            return Err(Error::Limit {
                subject: "image".to_owned(),
                got: (self.seen.len() + self.todo.len()) as u64,
                limit: MAX_DOCUMENTS as u64,
                unit: "documents",
            });
        }
        self.todo.push_back(Todo { blob, kind });
        Ok(())
    }
}

impl Whole {
    /// Walks from `top` over documents that are all in `blobs`.
    ///
    /// # Errors
    /// When one is not there, or not what an image is made of.
    pub fn read(top: BlobRef, blobs: &dyn Blobs, limits: Limits) -> Result<Self> {
        let mut tree = Tree::new(top, limits)?;
        while let Some(BlobRef { digest, size, .. }) = tree.wanted().cloned() {
            let mut content = Vec::new();
            let read = blobs.open(&digest)?.take(size.saturating_add(1)).read_to_end(&mut content);
            read.map_err(|error| Error::invalid(format!("document {digest}"), error.to_string()))?;
            tree.supply(&content)?;
        }
        tree.finish()
    }

    /// The image for this platform: the best fit, the first of equals.
    pub fn image_for(&self, platform: &Platform) -> Option<&Runnable> {
        let fits = |image: &Runnable| platform.score(&image.platform);
        // `max_by_key` gives the last of equals.
        self.images.iter().rev().filter(|image| fits(image).is_some()).max_by_key(|image| fits(image))
    }
}

/// Whether an index's entry belongs to an image instead of being one (BuildKit, "attestation storage").
fn is_attached(entry: &Descriptor) -> bool {
    entry.annotations().as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"))
}

#[cfg(test)]
mod tests;
