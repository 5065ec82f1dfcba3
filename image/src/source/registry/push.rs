//! Pushes (distribution-spec 1.1, "Push"): blobs that the registry does not have, then manifests, what points to others
//! after those, the top last: a name never stands for an image without its parts.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cloister_layer::digest::Digest;
use ureq::Body;
use ureq::http::Response;

use super::client::{Attempt, Client, Watch};
use super::credentials::DockerConfig;
use super::http::{Http, Timeouts};
use super::mirror::Mirrors;
use super::upload::{Method, Upload};
use crate::error::{Error, Result};
use crate::import::Stop;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::tree::{Node, Whole};

/// How to reach the registry.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Talk to the registry over HTTP without TLS.
    pub plain_http: bool,
    /// PEM file with certificates to trust beside the system's.
    pub ca_cert: Option<PathBuf>,
    /// Docker configuration to use instead of the user's own.
    pub authfile: Option<PathBuf>,
    /// Credentials to use instead of any file's.
    pub credentials: Option<Arc<DockerConfig>>,
    /// How long the network may take.
    pub timeouts: Timeouts,
}

/// Where the blobs of an image are.
pub trait Blobs {
    /// A blob from its beginning. It is asked for again when an upload breaks.
    ///
    /// # Errors
    /// When it is not there: the push ends.
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>>;
}

/// Pushes an image to a registry under one name, all of its platforms and attestations.
///
/// # Errors
/// When the registry refuses, or stays away, or a blob cannot be read. Blobs that it has by then stay there, without a name.
pub fn push(
    image: &Whole,
    blobs: &dyn Blobs,
    reference: &Reference,
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let client = Client {
        http: Http::new(options.ca_cert.as_deref(), &options.timeouts)?,
        config: match &options.credentials {
            Some(config) => config.clone(),
            None => Arc::new(DockerConfig::load(options.authfile.as_deref())?),
        },
        // A mirror is for reading.
        endpoints: Mirrors::default().endpoints(reference, options.plain_http)?,
        repository: reference.repository().to_owned(),
        timeouts: options.timeouts,
        authorization: Mutex::default(),
    };
    let push = Push { client: &client, blobs, progress };
    let is_node = |digest: &Digest| image.nodes.iter().any(|node| node.blob.digest == *digest);
    for (digest, size) in image.blobs.iter().filter(|(digest, _)| !is_node(digest)) {
        push.blob(digest, *size)?;
    }
    let top = image.nodes.first().map(|node| node.blob.digest);
    for node in image.nodes.iter().rev() {
        let digest = node.blob.digest;
        let name = if Some(digest) == top { reference.selector() } else { digest.to_string() };
        push.manifest(node, &name)?;
    }
    Ok(())
}

struct Push<'a> {
    client: &'a Client,
    blobs: &'a dyn Blobs,
    progress: &'a dyn Progress,
}

impl Push<'_> {
    /// One blob, unless the registry has it.
    fn blob(&self, digest: &Digest, size: u64) -> Result<()> {
        let what = format!("blob {digest}");
        let stop = Stop::default();
        let watch = Watch { stop: &stop, progress: self.progress };
        let path = format!("blobs/{digest}");
        let there = self.client.with_retries(&what, watch, || {
            let head = Upload { method: Method::Head, ..Upload::default() };
            let response = self.client.upload(&what, &self.client.url(&path), &head, None)?;
            match response.status().as_u16() {
                200 => Ok(true),
                404 => Ok(false),
                _ => Err(self.client.status(0, &what, response)),
            }
        })?;
        if there {
            return Ok(());
        }
        // Whole: what is left of a broken upload is not worth a state to keep.
        self.client.with_retries(&what, watch, || {
            let post = Upload { method: Method::Post, ..Upload::default() };
            let begun = self.client.upload(&what, &self.client.url("blobs/uploads/"), &post, None)?;
            let begun = self.expect(&what, begun, 202)?;
            let location = begun.headers().get("location").and_then(|value| value.to_str().ok());
            let place = location.and_then(|location| self.client.place(location));
            let place = place.ok_or_else(|| self.fatal(&what, "the registry names no place for it"))?;
            let url = format!("{place}{}digest={digest}", if place.contains('?') { '&' } else { '?' });
            let mut reader = self.blobs.open(digest).map_err(Attempt::Fatal)?.take(size);
            let media_type = Some("application/octet-stream");
            let put = Upload { method: Method::Put, media_type, size };
            let done = self.client.upload(&what, &url, &put, Some(&mut reader))?;
            self.expect(&what, done, 201).map(drop)
        })
    }

    /// An index or manifest, whose parts are there.
    fn manifest(&self, node: &Node, name: &str) -> Result<()> {
        let (digest, size) = (node.blob.digest, node.blob.size);
        let what = format!("manifest {digest}");
        let stop = Stop::default();
        let watch = Watch { stop: &stop, progress: self.progress };
        let url = self.client.url(&format!("manifests/{name}"));
        self.client.with_retries(&what, watch, || {
            let mut reader = self.blobs.open(&digest).map_err(Attempt::Fatal)?.take(size);
            let put = Upload { method: Method::Put, media_type: Some(&node.blob.media_type), size };
            let done = self.client.upload(&what, &url, &put, Some(&mut reader))?;
            let done = self.expect(&what, done, 201)?;
            let said = done.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
            match said {
                Some(said) if said != digest.to_string() => {
                    Err(self.fatal(&what, &format!("the registry has it as {}", crate::oci::short(said))))
                }
                _ => Ok(()),
            }
        })
    }

    fn expect(&self, what: &str, response: Response<Body>, status: u16) -> Result<Response<Body>, Attempt> {
        match response.status().as_u16() {
            got if got == status => Ok(response),
            _ => Err(self.client.status(0, what, response)),
        }
    }

    fn fatal(&self, what: &str, why: &str) -> Attempt {
        let error: Error = self.client.error(0, what, why);
        Attempt::Fatal(error)
    }
}
