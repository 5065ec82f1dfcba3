//! The images of builds: from a guest's archive, or another node, into containerd's image store, and kept there.
//!
//! Everything happens in steps of which each leaves something whole: content under a lease that ends with the process,
//! snapshots, a lease that records what has to be there ([`record`]), references, the CRI's answer.

mod archive;
pub mod check;
pub mod heal;
pub mod hold;
mod kubelet;
pub mod local;
pub mod names;
pub mod record;
mod settle;
mod tar;
pub mod walk;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cloister_image::{BlobRef, Digest, Limits, Whole};
use tokio::io::AsyncRead;

use self::hold::Hold;
use self::record::{BUILD, Record};
use crate::config::Config;
use crate::containerd::Containerd;
use crate::containerd::scope::Scope;
use crate::distribute::client::Client;
use crate::distribute::tls::Tls;
use crate::error::{Error, Result};

/// Longest name of a build, in bytes.
const MAX_BUILD: usize = 320;

/// Puts images into containerd.
#[derive(Debug, Clone)]
pub struct Importer {
    scope: Scope,
    /// Folder of locks.
    folder: PathBuf,
    /// Whose snapshots an image needs to be ready.
    snapshotters: Vec<String>,
    /// The kubelet's configuration.
    kubelet: PathBuf,
    /// How other nodes are reached, if they are.
    client: Option<Arc<Client>>,
}

/// An image that a build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `NAMESPACE/NAME` of the build. Only builds of one namespace may take names from each other.
    pub build: String,
    /// The uid of its `ImageBuild`: the image goes when that does. Without one it stays until it is removed by hand.
    pub object: Option<String>,
    /// Names to give, normalised or not.
    pub names: Vec<String>,
    /// Digest of the index or manifest, as the build said it.
    pub digest: Digest,
    /// Whether the kubelet's collection has to leave it.
    pub pin: bool,
    /// Take names also from images that no build made.
    pub replace: bool,
}

/// An image that pods of this node can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Digest of its index or manifest.
    pub digest: Digest,
    /// Digest of its config: the CRI's image ID.
    pub id: Digest,
    /// Its canonical names.
    pub names: Vec<String>,
    /// Bytes of all its blobs.
    pub bytes: u64,
    /// Why the kubelet may still not run it, in one line.
    pub objection: Option<String>,
}

impl Request {
    fn record(&self, top: BlobRef, names: Vec<String>, from: Option<String>) -> Record {
        let (build, object) = (self.build.clone(), self.object.clone());
        Record { build, object, top, names, pin: self.pin, from }
    }
}

impl Importer {
    /// Images in the containerd given, as the configuration says.
    pub fn new(containerd: Containerd, config: &Config) -> Self {
        let client = config.tls.clone().map(|tls| Arc::new(Client::new(Tls::new(tls))));
        Self {
            scope: Scope::new(containerd),
            folder: config.root.join("imports"),
            snapshotters: config.snapshotters.clone(),
            kubelet: config.kubelet.clone(),
            client,
        }
    }

    /// Imports the OCI archive that arrives from `from`, of at most `limit` bytes.
    ///
    /// # Errors
    /// When the archive is not exactly the image that was claimed, a name is invalid or somebody else's, or containerd
    /// cannot take it. Nothing of it stays then.
    pub async fn import(&self, request: &Request, from: impl AsyncRead + Unpin, limit: u64) -> Result<Ready> {
        let start = std::time::Instant::now();
        let names = self.check(request)?;
        let (hold, scope) = self.hold().await?;
        let work = async {
            let received = archive::receive(&scope, &hold.id, from, limit, &request.digest).await?;
            let whole = exactly(&scope, &received.top, |digest| received.blobs.get(digest).copied()).await?;
            if let Some(extra) = received.blobs.keys().find(|digest| !whole.blobs.contains_key(digest)) {
                return Err(tar::bad(format!("blob {extra} belongs to no image")));
            }
            let top = received.top;
            let record = request.record(top, names, None);
            self.publish(&scope, &hold, &record, &whole, request.replace).await
        };
        let result = work.await;
        self.finish(hold, result, start, request).await
    }

    /// Fetches the image from the node at `peer`, `HOST:PORT`.
    ///
    /// # Errors
    /// As for [`Importer::import`], and when the other node cannot be reached or does not have it.
    pub async fn fetch(&self, request: &Request, peer: &str) -> Result<Ready> {
        let start = std::time::Instant::now();
        let names = self.check(request)?;
        let (hold, scope) = self.hold().await?;
        let work = async {
            let (top, whole) = self.client()?.fetch(&scope, &hold.id, peer, &request.digest).await?;
            let record = request.record(top, names, Some(peer.to_owned()));
            self.publish(&scope, &hold, &record, &whole, request.replace).await
        };
        let result = work.await;
        self.finish(hold, result, start, request).await
    }

    /// Makes sure that the image of a record is here; whether something was missing.
    ///
    /// # Errors
    /// When it cannot be brought back: its content is gone and no other node has it, or a name was taken.
    pub async fn ensure(&self, record: &Record) -> Result<bool> {
        if let Ok(whole) = walk::walk(&self.scope, &record.top).await?
            && self.missing_blob(&whole).await?.is_none()
        {
            if self.is_settled(record, &whole).await? {
                return Ok(false);
            }
            let (hold, scope) = self.hold().await?;
            let result = self.settle(&scope, &hold, record, &whole, &settle::Mode::Heal).await;
            hold.end(&self.scope).await?;
            return result.map(|_| true);
        }
        let Some(peer) = &record.from else {
            if self.forget_unfinished(record).await? {
                return Ok(true);
            }
            return Err(Error::NotFound(format!("content of image {}", record.top.digest)));
        };
        let (hold, scope) = self.hold().await?;
        let work = async {
            let (_, whole) = self.client()?.fetch(&scope, &hold.id, peer, &record.top.digest).await?;
            walk::bind(&scope, &whole).await?;
            self.settle(&scope, &hold, record, &whole, &settle::Mode::Heal).await
        };
        let result = work.await;
        hold.end(&self.scope).await?;
        result.map(|_| true)
    }

    /// The records of all builds, of each the newest.
    pub async fn records(&self) -> Result<Vec<Record>> {
        let mut leases = self.scope.leases_labelled(BUILD).await?;
        leases.sort_by_key(|lease| lease.created_at.map(|at| (at.seconds, at.nanos)));
        let records = leases.iter().filter_map(Record::of).map(|record| (record.build.clone(), record));
        Ok(records.collect::<BTreeMap<_, _>>().into_values().collect())
    }

    /// The record of one build.
    pub async fn record(&self, build: &str) -> Result<Record> {
        let found = self.records().await?.into_iter().find(|record| record.build == build);
        found.ok_or_else(|| Error::NotFound(format!("image of build {build}")))
    }

    /// Lets the kubelet's collection have a build's image, or not.
    pub async fn pin(&self, build: &str, pin: bool) -> Result<()> {
        let record = Record { pin, ..self.record(build).await? };
        self.settle_anew(&record, &settle::Mode::Change).await.map(drop)
    }

    /// Gives the image that a build has here the names and the pin of the request, which is for the same digest.
    ///
    /// # Errors
    /// When its content is not here, or a name is invalid or somebody else's.
    pub async fn rename(&self, request: &Request) -> Result<Ready> {
        let names = self.check(request)?;
        let Record { top, from, .. } = self.record(&request.build).await?;
        if top.digest != request.digest {
            return Err(Error::Precondition(format!("build {}: its image is {}", request.build, top.digest)));
        }
        let record = request.record(top, names, from);
        self.settle_anew(&record, &settle::Mode::Import { replace: request.replace }).await
    }

    async fn settle_anew(&self, record: &Record, mode: &settle::Mode) -> Result<Ready> {
        let whole = walk::walk(&self.scope, &record.top).await?;
        let whole = whole.map_err(|blob| Error::NotFound(format!("blob {}", blob.digest)))?;
        let (hold, scope) = self.hold().await?;
        let result = self.settle(&scope, &hold, record, &whole, mode).await;
        hold.end(&self.scope).await?;
        result
    }

    /// Removes the references of what processes that died were importing.
    pub async fn sweep(&self) -> Result<()> {
        hold::sweep(&self.scope, &self.folder).await
    }

    fn check(&self, request: &Request) -> Result<Vec<String>> {
        let build = &request.build;
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._/".contains(&byte);
        if build.is_empty() || build.len() > MAX_BUILD || !build.bytes().all(fine) {
            return Err(Error::Invalid(format!("{build:?} is not NAMESPACE/NAME of a build")));
        }
        names::canonical(&request.names, &request.digest)
    }

    async fn hold(&self) -> Result<(Hold, Scope)> {
        self.sweep().await?;
        Hold::new(&self.scope, &self.folder).await
    }

    fn client(&self) -> Result<&Client> {
        self.client.as_deref().ok_or_else(|| {
            Error::Precondition("no certificate for other nodes: set `tls` in node.toml".into())
        })
    }

    /// From content to an image that is ready.
    async fn publish(
        &self,
        scope: &Scope,
        hold: &Hold,
        record: &Record,
        whole: &Whole,
        replace: bool,
    ) -> Result<Ready> {
        walk::bind(scope, whole).await?;
        self.settle(scope, hold, record, whole, &settle::Mode::Import { replace }).await
    }

    async fn finish(
        &self,
        hold: Hold,
        result: Result<Ready>,
        start: std::time::Instant,
        request: &Request,
    ) -> Result<Ready> {
        let ended = hold.end(&self.scope).await;
        let Request { build, digest, .. } = request;
        let ready = result?;
        let (bytes, milliseconds) = (ready.bytes, start.elapsed().as_millis());
        tracing::info!(build, %digest, bytes, milliseconds, "image ready");
        if let Some(objection) = &ready.objection {
            tracing::warn!(build, %digest, objection, "pods may not run this image");
        }
        ended.map(|()| ready)
    }

    /// A blob that is not here, of all that belong to an image.
    async fn missing_blob(&self, whole: &Whole) -> Result<Option<Digest>> {
        for (digest, size) in &whole.blobs {
            if self.scope.size(digest).await? != Some(*size) {
                return Ok(Some(*digest));
            }
        }
        Ok(None)
    }
}

/// The image below `top`, of which every blob has to be among those that arrived, with the size it had.
async fn exactly(scope: &Scope, top: &BlobRef, arrived: impl Fn(&Digest) -> Option<u64>) -> Result<Whole> {
    let there = |digest: &Digest, size: u64| match arrived(digest) {
        Some(got) if got == size => Ok(()),
        Some(got) => Err(tar::bad(format!("blob {digest} has {got} bytes, its descriptor says {size}"))),
        None => Err(tar::bad(format!("blob {digest} is missing"))),
    };
    let mut tree = cloister_image::Tree::new(top.clone(), Limits::default())?;
    while let Some(wanted) = tree.wanted().cloned() {
        there(&wanted.digest, wanted.size)?;
        let content = scope.document(&wanted.digest, wanted.size).await?;
        tree.supply(&content.ok_or_else(|| Error::NotFound(format!("blob {}", wanted.digest)))?)?;
    }
    let whole = tree.finish()?;
    whole.blobs.iter().try_for_each(|(digest, size)| there(digest, *size))?;
    walk::ours(&whole)?;
    Ok(whole)
}
