//! Pulls from a registry, and pushes to one (OCI distribution-spec 1.1), with our own blocking client.
//!
//! - HTTPS, plain HTTP only when asked for; a CA of one's own beside the system's.
//! - Mirrors in order, the registry last. Credentials from docker's configuration, sent to their own host only.
//! - Failures that may pass are tried again with growing, jittered pauses; `Retry-After` is honoured up to two minutes.
//! - A layer streams straight into the converter and, copied on the way, into its blob file: nothing is read twice.

mod artifact;
mod auth;
mod blob;
mod cache;
mod challenge;
mod client;
mod credentials;
pub mod http;
mod mirror;
mod push;
mod reach;
mod retry;
mod upload;

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cloister_layer::digest::Digest;

use self::blob::BlobReader;
use self::client::{Client, Watch};
use self::http::Http;
use crate::error::{Error, Result};
use crate::import::{self, LayerSource, LayerSpec, Options, Stop};
use crate::oci::{self, BlobRef, Documents, Wish};
use crate::progress::{Progress, Silent};
use crate::reference::Reference;
use crate::store::{ImageRecord, Store};

pub use self::artifact::{Artifact, Layer, Remote};
pub use self::cache::{RemoteCache, cache};
pub use self::credentials::{Credentials, DockerConfig};
pub use self::http::Timeouts;
pub use self::mirror::Mirrors;
pub use self::push::{Blobs, PushOptions, push};
pub use self::reach::Reach;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// How to reach the registry, and what to do with the image.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Talk to the registry over HTTP without TLS.
    pub plain_http: bool,
    /// PEM file with certificates to trust beside the system's.
    pub ca_cert: Option<PathBuf>,
    /// Docker configuration to use instead of the user's own.
    pub authfile: Option<PathBuf>,
    /// Credentials to use instead of any file's.
    pub credentials: Option<Arc<DockerConfig>>,
    /// Hosts to ask first.
    pub mirrors: Mirrors,
    /// How long the network may take.
    pub timeouts: Timeouts,
    /// Platform, bounds, build information.
    pub import: Options,
}

/// The digest of the manifest or index that `reference` stands for at its registry.
///
/// # Errors
/// When the registry does not say.
pub fn digest(reference: &Reference, options: &PullOptions) -> Result<Digest> {
    let client = client(reference, options)?;
    let (start, _) = manifest(&client, reference, options.import.limits.manifest, &Silent)?;
    Ok(start.digest)
}

fn client(reference: &Reference, options: &PullOptions) -> Result<Client> {
    Ok(Client {
        http: Http::new(options.ca_cert.as_deref(), &options.timeouts)?,
        config: match &options.credentials {
            Some(config) => config.clone(),
            None => Arc::new(DockerConfig::load(options.authfile.as_deref())?),
        },
        endpoints: options.mirrors.endpoints(reference, options.plain_http)?,
        repository: reference.repository().to_owned(),
        timeouts: options.timeouts,
        authorization: Mutex::default(),
    })
}

/// Pulls an image into `store` under `name` (`None`: under the reference itself).
pub fn pull(
    store: &Store,
    reference: &Reference,
    name: Option<&Reference>,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<ImageRecord> {
    let source = Source { store, client: client(reference, options)? };
    let limit = options.import.limits.manifest;
    let (start, content) = manifest(&source.client, reference, limit, progress)?;
    let wish = Wish { platform: options.import.platform.as_ref(), limits: &options.import.limits };
    let plan = oci::resolve(&source, &start, Some(content), wish)?.into();
    let names = [name.unwrap_or(reference).clone()];
    let mut records = import::import(store, &source, plan, &names, &options.import, progress)?;
    records.pop().ok_or_else(|| Error::NoSuchImage(reference.to_string()))
}

struct Source<'a> {
    store: &'a Store,
    client: Client,
}

/// The manifest or index a reference stands for.
fn manifest(
    client: &Client,
    reference: &Reference,
    limit: u64,
    progress: &dyn Progress,
) -> Result<(BlobRef, Vec<u8>)> {
    let what = format!("manifest of {reference}");
    let stop = Stop::default();
    let path = format!("manifests/{}", reference.selector());
    let answer = client.small(&what, &path, Some(ACCEPT), limit, Watch { stop: &stop, progress })?;
    let digest = Digest::of(&answer.body);
    if let Some(expected) = reference.digest() {
        oci::check_digest(&what, &expected, &answer.body)?;
    }
    if let Some(said) = &answer.content_digest
        && said.starts_with("sha256:")
        && *said != digest.to_string()
    {
        return Err(Error::invalid(
            what,
            format!("its digest is {digest}, the registry says {}", oci::short(said)),
        ));
    }
    let start = BlobRef { digest, size: answer.body.len() as u64, media_type: answer.media_type };
    Ok((start, answer.body))
}

impl Documents for Source<'_> {
    fn document(&self, blob: &BlobRef, limit: u64) -> Result<Vec<u8>> {
        // A blob in the store has its digest; asking for it again would bring the same bytes.
        if self.store.open_blob(&blob.digest)?.is_some()
            && let Ok(content) = self.store.read_blob(&blob.digest, limit)
        {
            return Ok(content);
        }
        let kind = if oci::is_document(&blob.media_type) { "manifests" } else { "blobs" };
        let what = format!("{} {}", kind.trim_end_matches('s'), blob.digest);
        let accept = (kind == "manifests").then_some(ACCEPT);
        let watch = Watch { stop: &Stop::default(), progress: &Silent };
        Ok(self.client.small(&what, &format!("{kind}/{}", blob.digest), accept, limit, watch)?.body)
    }
}

impl LayerSource for Source<'_> {
    fn layer<'a>(
        &'a self,
        layer: &LayerSpec,
        stop: &'a Stop,
        progress: &'a dyn Progress,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        let blob = layer
            .blob
            .as_ref()
            .ok_or_else(|| Error::invalid(layer.name.clone(), "a registry layer without a digest"))?;
        Ok(Box::new(BlobReader::new(&self.client, blob, Watch { stop, progress })))
    }

    /// Three downloads at a time, as docker does: a single connection seldom fills the line.
    fn min_parallel(&self) -> usize {
        3
    }
}
