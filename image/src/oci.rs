//! From a descriptor to one runnable image: indexes, platform choice, manifest and config checks.
//!
//! Sources: OCI image-spec 1.1 (`manifest.md`, `image-index.md`, `media-types.md`), Docker image manifest v2 schema 2.

use std::collections::HashSet;

use cloister_layer::digest::Digest;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::config::ParsedConfig;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::platform::Platform;

/// Indexes may hold indexes; deeper than this nobody goes who means well.
const MAX_DEPTH: usize = 4;
/// Indexes and manifests read before we give up looking for the right platform.
const MAX_DOCUMENTS: usize = 32;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A blob somewhere, by digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Number of its bytes.
    pub size: u64,
    /// Media type, as the descriptor says it.
    pub media_type: String,
}

/// A place manifests and configs can be read from.
pub(crate) trait Documents {
    /// Reads a blob of at most `limit` bytes. The caller checks size and digest.
    fn document(&self, blob: &BlobRef, limit: u64) -> Result<Vec<u8>>;
}

/// One image, chosen and checked, ready to import.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) manifest: Vec<u8>,
    pub(crate) reference: BlobRef,
    /// The index it was chosen from.
    pub(crate) index: Option<Digest>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) config: ParsedConfig,
    /// Lowest first, one for each diff ID of the config.
    pub(crate) layers: Vec<BlobRef>,
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// `None`: the host's platform, and an image that is not in an index may be of any.
    pub(crate) platform: Option<&'a Platform>,
    pub(crate) limits: &'a Limits,
}

impl BlobRef {
    pub(crate) fn of(descriptor: &Descriptor) -> Result<Self> {
        let text = descriptor.digest().to_string();
        let digest = text.parse().map_err(|_| {
            Error::invalid(format!("descriptor {}", short(&text)), "only sha256 digests are supported")
        })?;
        Ok(Self { digest, size: descriptor.size(), media_type: descriptor.media_type().to_string() })
    }

    /// Checks bytes read for this descriptor.
    pub(crate) fn verify(&self, what: &str, content: &[u8]) -> Result<()> {
        if content.len() as u64 != self.size {
            return Err(Error::invalid(
                format!("{what} {}", self.digest),
                format!("{} bytes long, its descriptor says {}", content.len(), self.size),
            ));
        }
        check_digest(what, &self.digest, content)
    }
}

/// Checks that `content` is what `expected` names.
pub(crate) fn check_digest(what: &str, expected: &Digest, content: &[u8]) -> Result<()> {
    let got = Digest::of(content);
    if got == *expected {
        Ok(())
    } else {
        Err(Error::Digest { subject: what.to_owned(), got, expected: *expected })
    }
}

/// Follows indexes from `start` to the image for the wished platform.
///
/// `content` is the document at `start` when the caller has read and checked it already.
pub(crate) fn resolve(
    source: &dyn Documents,
    start: &BlobRef,
    content: Option<Vec<u8>>,
    wish: Wish<'_>,
) -> Result<Resolved> {
    let host = Platform::host();
    let mut search = Search {
        source,
        limits: wish.limits,
        wanted: wish.platform.unwrap_or(&host),
        strict: wish.platform.is_some(),
        seen: HashSet::new(),
        offered: Vec::new(),
    };
    let mut found = search.visit(start, content, 0)?.ok_or_else(|| {
        let offered = if search.offered.is_empty() { "none".to_owned() } else { search.offered.join(", ") };
        Error::invalid(
            format!("image {}", start.digest),
            format!("no image for {}; offered: {offered}", search.wanted),
        )
    })?;
    if found.reference.digest != start.digest {
        found.index = Some(start.digest);
    }
    Ok(found)
}

struct Search<'a> {
    source: &'a dyn Documents,
    limits: &'a Limits,
    wanted: &'a Platform,
    strict: bool,
    seen: HashSet<Digest>,
    offered: Vec<String>,
}

impl Search<'_> {
    /// `None`: nothing for the wanted platform below this descriptor.
    fn visit(&mut self, blob: &BlobRef, content: Option<Vec<u8>>, depth: usize) -> Result<Option<Resolved>> {
        let subject = || format!("manifest {}", blob.digest);
        if depth > MAX_DEPTH {
            return Err(Error::Limit {
                subject: subject(),
                got: depth as u64,
                limit: MAX_DEPTH as u64,
                unit: "nested indexes",
            });
        }
        if !self.seen.insert(blob.digest) {
            return Err(Error::invalid(
                subject(),
                "an index lists it twice on the way to the image: loops are refused",
            ));
        }
        if self.seen.len() > MAX_DOCUMENTS {
            return Err(Error::Limit {
                subject: subject(),
                got: self.seen.len() as u64,
                limit: MAX_DOCUMENTS as u64,
                unit: "manifests looked at",
            });
        }
        let content = match content {
            Some(content) => content,
            None => {
                within("manifest", blob, self.limits.manifest)?;
                let content = self.source.document(blob, self.limits.manifest)?;
                blob.verify("manifest", &content)?;
                content
            }
        };
        match Document::parse(&content, &blob.media_type, blob.digest)? {
            Document::Index(index) => self.choose(&index, blob, depth),
            Document::Manifest(manifest) => self.image(content, &manifest, blob, depth),
        }
    }

    /// Picks from an index: the best entry of a fitting platform first, then entries that do not say theirs.
    fn choose(&mut self, index: &ImageIndex, blob: &BlobRef, depth: usize) -> Result<Option<Resolved>> {
        let entries = index.manifests();
        self.limits.index(format_args!("index {}", blob.digest), entries.len())?;
        let mut fitting = Vec::new();
        let mut unsaid = Vec::new();
        for entry in entries {
            let is_attachment =
                entry.annotations().as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
            if is_attachment || !is_document(entry.media_type().as_ref()) {
                continue;
            }
            match entry.platform() {
                Some(said) => {
                    let said = Platform::new(
                        &said.os().to_string(),
                        &said.architecture().to_string(),
                        said.variant().as_deref().unwrap_or_default(),
                    );
                    match self.wanted.score(&said) {
                        Some(score) => fitting.push((score, entry)),
                        None if self.offered.len() < 16 => self.offered.push(short(&said.to_string())),
                        None => {}
                    }
                }
                None => unsaid.push(entry),
            }
        }
        // Stable: of two equally good entries the first listed wins, as the specification asks.
        fitting.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
        for entry in fitting.into_iter().map(|(_, entry)| entry).chain(unsaid) {
            // A manifest reached over an index must be for the platform wanted.
            let strict = std::mem::replace(&mut self.strict, true);
            let found = self.visit(&BlobRef::of(entry)?, None, depth + 1);
            self.strict = strict;
            if let Some(found) = found? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn image(
        &mut self,
        content: Vec<u8>,
        manifest: &ImageManifest,
        blob: &BlobRef,
        depth: usize,
    ) -> Result<Option<Resolved>> {
        let subject = || format!("manifest {}", blob.digest);
        let config_ref = BlobRef::of(manifest.config())?;
        if !matches!(config_ref.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let kind = manifest
                .artifact_type()
                .as_ref()
                .map_or(config_ref.media_type.as_str(), |kind| kind.as_ref());
            return Err(Error::invalid(
                subject(),
                format!("an artifact of type {}, not an image that can run", short(kind)),
            ));
        }
        let count = manifest.layers().len();
        if count > self.limits.layers {
            return Err(Error::Limit {
                subject: subject(),
                got: count as u64,
                limit: self.limits.layers as u64,
                unit: "layers",
            });
        }
        let layers: Vec<BlobRef> = manifest.layers().iter().map(BlobRef::of).collect::<Result<_>>()?;
        for layer in &layers {
            check_layer_type(layer)?;
        }
        check_total(&subject(), layers.iter().map(|layer| layer.size), self.limits.total_bytes)?;

        within("config", &config_ref, self.limits.config)?;
        let config_bytes = self.source.document(&config_ref, self.limits.config)?;
        config_ref.verify("config", &config_bytes)?;
        let config = ParsedConfig::parse(&config_bytes, &config_ref.digest)?;
        if config.platform.os != "linux" {
            if depth == 0 {
                return Err(Error::invalid(
                    subject(),
                    format!(
                        "an image for {}, only Linux images run here",
                        short(&config.platform.to_string())
                    ),
                ));
            }
            return Ok(None);
        }
        if self.strict && self.wanted.score(&config.platform).is_none() {
            self.offered.push(short(&config.platform.to_string()));
            return Ok(None);
        }
        if config.diff_ids.len() != layers.len() {
            return Err(Error::invalid(
                subject(),
                format!("{} layers, but its config lists {} diff IDs", layers.len(), config.diff_ids.len()),
            ));
        }
        let media_type = if blob.media_type == DOCKER_MANIFEST { DOCKER_MANIFEST } else { OCI_MANIFEST };
        Ok(Some(Resolved {
            reference: BlobRef {
                media_type: media_type.to_owned(),
                digest: blob.digest,
                size: content.len() as u64,
            },
            manifest: content,
            index: None,
            config_bytes,
            config_digest: config_ref.digest,
            config,
            layers,
        }))
    }
}

pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Just enough of a document to tell what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    pub(crate) fn parse(content: &[u8], declared: &str, digest: Digest) -> Result<Self> {
        let fail = |why: String| Error::invalid(format!("manifest {digest}"), why);
        let probe: Probe =
            serde_json::from_slice(content).map_err(|error| fail(format!("not a manifest: {error}")))?;
        let said = probe.media_type.as_deref();
        if probe.schema_version == Some(1)
            || declared.starts_with("application/vnd.docker.distribution.manifest.v1+")
        {
            return Err(fail("docker schema 1, which has no verifiable layers; pull and push it once with a current docker".to_owned()));
        }
        // The same bytes must not mean two things to two readers (GHSA-77vh-xpmg-72qh).
        let kind = |media_type: &str| match media_type {
            OCI_INDEX | DOCKER_INDEX => Some(true),
            OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
            _ => None,
        };
        let is_index = probe.manifests.is_some();
        if is_index && (probe.layers.is_some() || probe.config.is_some()) {
            return Err(fail("has both `manifests` and `layers`".to_owned()));
        }
        for media_type in said.into_iter().chain(Some(declared)) {
            match kind(media_type) {
                Some(expected) if expected != is_index => {
                    return Err(fail(format!("media type {media_type} does not fit its content")));
                }
                None if Some(media_type) == said => {
                    return Err(fail(format!("media type {} is not an image", short(media_type))));
                }
                _ => {}
            }
        }
        if is_index {
            serde_json::from_slice(content)
                .map(|index| Self::Index(Box::new(index)))
                .map_err(|error| fail(format!("not an image index: {error}")))
        } else {
            serde_json::from_slice(content)
                .map(|manifest| Self::Manifest(Box::new(manifest)))
                .map_err(|error| fail(format!("not an image manifest: {error}")))
        }
    }
}

pub(crate) fn is_document(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Refuses what cannot be turned into a file system, by the reason users can act on.
pub(crate) fn check_layer_type(layer: &BlobRef) -> Result<()> {
    let kind = layer.media_type.as_str();
    let why = match kind {
        OCI_LAYER
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => return Ok(()),
        _ if kind.ends_with("+encrypted") => {
            "encrypted layers are not supported; decrypt the image first".to_owned()
        }
        _ if kind.contains("nondistributable") || kind.contains(".foreign.") => {
            "a foreign (non-distributable) layer, kept by its vendor and not by the registry".to_owned()
        }
        _ => format!("unknown layer type {}", short(kind)),
    };
    Err(Error::invalid(format!("layer {}", layer.digest), why))
}

/// Refuses sums above `limit`, also those that would overflow.
pub(crate) fn check_total(subject: &str, sizes: impl Iterator<Item = u64>, limit: u64) -> Result<u64> {
    let total = sizes.fold(0, u64::saturating_add);
    if total > limit {
        return Err(Error::Limit { subject: subject.to_owned(), got: total, limit, unit: "bytes" });
    }
    Ok(total)
}

pub(crate) fn within(what: &str, blob: &BlobRef, limit: u64) -> Result<()> {
    check_total(&format!("{what} {}", blob.digest), std::iter::once(blob.size), limit).map(drop)
}

/// A hostile text, short enough for one line.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
