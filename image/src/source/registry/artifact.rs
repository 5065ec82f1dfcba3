//! What a repository has and is no image to run: artifacts, and images for their files alone.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use cloister_layer::digest::{Digest, Hasher};

use super::blob::BlobReader;
use super::client::{Client, Watch};
use super::credentials::DockerConfig;
use super::http::{Http, Timeouts};
use super::mirror::Mirrors;
use super::reach::Reach;
use crate::error::{Error, Result};
use crate::import::Stop;
use crate::limits::Limits;
use crate::oci::{self, BlobRef, Document};
use crate::platform::Platform;
use crate::progress::Silent;
use crate::reference::Reference;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// One repository of a registry.
#[derive(Debug)]
pub struct Remote {
    client: Client,
    reference: Reference,
    limits: Limits,
}

/// A manifest's layers.
#[derive(Debug)]
pub struct Artifact {
    /// Digest that the reference stands for.
    pub digest: Digest,
    /// Whether it says to be an image with a root filesystem.
    pub image: bool,
    /// Lowest first.
    pub layers: Vec<Layer>,
}

/// One of them.
#[derive(Debug)]
pub struct Layer {
    /// Where its bytes are.
    pub blob: BlobRef,
    /// What the manifest says about it.
    pub annotations: HashMap<String, String>,
}

impl Remote {
    /// Prepares to ask for a reference, over HTTPS unless `plain_http`, trusting also the certificates of a PEM file.
    ///
    /// # Errors
    /// The certificates can't be used.
    pub fn new(
        reference: &Reference,
        config: Arc<DockerConfig>,
        ca_cert: Option<&Path>,
        plain_http: bool,
    ) -> Result<Self> {
        Self::reaching(reference, config, ca_cert, plain_http, Reach::Anywhere)
    }

    /// The same, at servers within `reach`.
    ///
    /// # Errors
    /// As for [`Remote::new`].
    pub fn reaching(
        reference: &Reference,
        config: Arc<DockerConfig>,
        ca_cert: Option<&Path>,
        plain_http: bool,
        reach: Reach,
    ) -> Result<Self> {
        let timeouts = Timeouts::default();
        let client = Client {
            http: Http::reaching(ca_cert, &timeouts, reach)?,
            config,
            endpoints: Mirrors::default().endpoints(reference, plain_http)?,
            repository: reference.repository().to_owned(),
            timeouts,
            authorization: Mutex::default(),
        };
        Ok(Self { client, reference: reference.clone(), limits: Limits::default() })
    }

    /// The manifest; of an index, that of this machine's platform or the only one.
    ///
    /// # Errors
    /// What the registry says, or what is wrong with its documents.
    pub fn artifact(&self) -> Result<Artifact> {
        let (start, mut content) = self.manifest()?;
        let mut blob = start.clone();
        if let Document::Index(index) = Document::parse(&content, &blob.media_type, blob.digest)? {
            self.limits.index(format_args!("index {}", blob.digest), index.manifests().len())?;
            let host = Platform::host();
            let fits = |entry: &&oci_spec::image::Descriptor| match entry.platform() {
                Some(said) => host.score(&Platform::new(
                    &said.os().to_string(),
                    &said.architecture().to_string(),
                    said.variant().as_deref().unwrap_or_default(),
                )),
                // Artifacts say none; they come after what is known to fit.
                None => Some(0),
            };
            let best = index.manifests().iter().filter(|entry| oci::is_document(entry.media_type().as_ref()));
            let best = best.filter_map(|entry| Some((fits(&entry)?, entry)));
            // Of equals the first counts.
            let best = best.reduce(|best, next| if next.0 > best.0 { next } else { best });
            let (_, entry) = best.ok_or_else(|| {
                Error::invalid(format!("index {}", start.digest), format!("nothing for {host} in it"))
            })?;
            blob = BlobRef::of(entry)?;
            oci::within("manifest", &blob, self.limits.manifest)?;
            content = self.document(&blob)?;
        }
        let Document::Manifest(manifest) = Document::parse(&content, &blob.media_type, blob.digest)? else {
            return Err(Error::invalid(format!("manifest {}", blob.digest), "an index in an index"));
        };
        let subject = format!("manifest {}", blob.digest);
        let layers = manifest.layers();
        let (got, limit) = (layers.len() as u64, self.limits.layers as u64);
        if got > limit {
            return Err(Error::Limit { subject, got, limit, unit: "layers" });
        }
        let layer = |layer: &oci_spec::image::Descriptor| {
            let annotations = layer.annotations().clone().unwrap_or_default();
            Ok(Layer { blob: BlobRef::of(layer)?, annotations })
        };
        Ok(Artifact {
            digest: start.digest,
            image: matches!(manifest.config().media_type().as_ref(), oci::OCI_CONFIG | oci::DOCKER_CONFIG),
            layers: layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// Copies a blob's bytes, which have its size and its digest when this succeeds. `wanted` may end it.
    ///
    /// # Errors
    /// What the registry says, that the bytes are others, or what `out` says.
    pub fn copy(&self, blob: &BlobRef, out: &mut impl Write, wanted: impl Fn() -> bool) -> Result<()> {
        let what = format!("layer {}", blob.digest);
        let stop = Stop::default();
        let mut reader = BlobReader::new(&self.client, blob, Watch { stop: &stop, progress: &Silent });
        let (mut hasher, mut left) = (Hasher::new(), blob.size);
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            if !wanted() {
                return Err(Error::invalid(what, "not wanted any more"));
            }
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let length = reader.read(&mut buffer[..most]).map_err(|error| unwrapped(&what, error))?;
            if length == 0 {
                return Err(Error::invalid(what, format!("{left} bytes shorter than its descriptor says")));
            }
            hasher.update(&buffer[..length]);
            out.write_all(&buffer[..length])
                .map_err(|error| Error::invalid(what.as_str(), format!("writing it: {error}")))?;
            left -= length as u64;
        }
        let got = hasher.finish();
        if got == blob.digest {
            Ok(())
        } else {
            Err(Error::Digest { subject: what, got, expected: blob.digest })
        }
    }

    /// The document that the reference stands for.
    pub(super) fn manifest(&self) -> Result<(BlobRef, Vec<u8>)> {
        super::manifest(&self.client, &self.reference, self.limits.manifest, &Silent)
    }

    /// Reads a manifest that an index lists.
    pub(super) fn document(&self, blob: &BlobRef) -> Result<Vec<u8>> {
        let what = format!("manifest {}", blob.digest);
        let watch = Watch { stop: &Stop::default(), progress: &Silent };
        let path = format!("manifests/{}", blob.digest);
        let body = self.client.small(&what, &path, Some(super::ACCEPT), self.limits.manifest, watch)?.body;
        blob.verify("manifest", &body)?;
        Ok(body)
    }
}

/// The registry's error that a reader had to wrap.
fn unwrapped(what: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::invalid(what, error.to_string()),
    }
}
