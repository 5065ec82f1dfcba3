//! buildkitd over one stream, and the calls that need no session.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::{
    DiskUsageRequest, InfoRequest, ListWorkersRequest, PruneRequest, UsageRecord,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};

use super::error::{Error, Result, reason};
use super::link::{Link, Watched};

/// What buildkitd itself sends at most in one message, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// Trailers carry the Dockerfile and stack traces of an error; bytes.
pub(super) const MAX_HEADERS: u32 = 1 << 20;
/// Flow control windows, in bytes: a message and then some, over a connection with vsock's latency.
pub(super) const STREAM_WINDOW: u32 = 2 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long a small call may take; in emulation a busy guest needs seconds.
const CALL: Duration = Duration::from_secs(30);
/// How long removing records from a cache may take.
const PRUNE: Duration = Duration::from_secs(600);
/// Cache records told at most.
const MAX_RECORDS: usize = 100_000;
/// Policies of a buildkitd that are followed at most.
const MAX_POLICIES: usize = 16;

/// A buildkitd, by the one connection there is to it. Clones share that connection; when it ends, every call and build on
/// it ends with [`Error::Lost`].
#[derive(Debug, Clone)]
pub struct BuildKit {
    pub(super) control: ControlClient<Channel>,
    pub(super) link: Link,
}

/// Which buildkitd answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The Go package it was built from.
    pub package: String,
    /// Such as `v0.13.2`.
    pub version: String,
}

/// One record of buildkitd's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// buildkitd's name for it.
    pub id: String,
    /// Bytes on its disk.
    pub bytes: u64,
    /// `regular`, `source.local`, `exec.cachemount`, `frontend`, `internal`, …
    pub kind: String,
    /// What made it.
    pub description: String,
    /// Whether a running build needs it.
    pub in_use: bool,
    /// Whether other records hold the same bytes.
    pub shared: bool,
    /// How often a build has used it.
    pub uses: u64,
}

/// What to remove from the cache. The default is everything that nothing uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Also what buildkitd keeps for itself, such as frontends.
    pub internal: bool,
    /// Only what was not used for this long.
    pub unused_for: Duration,
    /// Bytes that may stay.
    pub keep_bytes: u64,
    /// Only records that one of these filters means, such as `type==source.local`.
    pub filters: Vec<String>,
}

impl BuildKit {
    /// Speaks to the buildkitd at the other end of `stream`.
    ///
    /// # Errors
    /// [`Error::Lost`] when nobody is there, [`Error::Refused`] when it is no buildkitd.
    pub async fn connect(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let link = Link::new();
        let slot = Mutex::new(Some(TokioIo::new(Watched::new(stream, link.clone()))));
        // There is one stream. A channel that asks for another has lost it.
        let connector = tower::service_fn(move |_: Uri| {
            let stream = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            std::future::ready(stream)
        });
        let channel = Endpoint::from_static("http://buildkitd")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADERS)
            .connect_with_connector_lazy(connector);
        let control = ControlClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let buildkit = Self { control, link };
        buildkit.info().await?;
        Ok(buildkit)
    }

    /// Asks for the version.
    pub async fn info(&self) -> Result<Info> {
        let mut control = self.control.clone();
        let answer = self.call("info", CALL, control.info(InfoRequest {})).await?;
        let version = answer.into_inner().buildkit_version.unwrap_or_default();
        Ok(Info { package: reason(&version.package), version: reason(&version.version) })
    }

    /// Lists what the cache holds.
    pub async fn disk_usage(&self) -> Result<Vec<CacheRecord>> {
        let mut control = self.control.clone();
        let request = DiskUsageRequest::default();
        let answer = self.call("disk usage", CALL, control.disk_usage(request)).await?.into_inner();
        Ok(answer.record.into_iter().take(MAX_RECORDS).map(record).collect())
    }

    /// Removes from the cache what buildkitd's own policies say. It does so by itself a second after its start, while its one build
    /// uses the records, and then once a minute.
    pub async fn collect_garbage(&self) -> Result<()> {
        let mut control = self.control.clone();
        let workers = control.list_workers(ListWorkersRequest::default());
        let workers = self.call("list workers", CALL, workers).await?.into_inner().record;
        for policy in workers.into_iter().flat_map(|worker| worker.gc_policy).take(MAX_POLICIES) {
            let request = PruneRequest {
                filter: policy.filters,
                all: policy.all,
                keep_duration: policy.keep_duration,
                reserved_space: policy.reserved_space,
                max_used_space: policy.max_used_space,
                min_free_space: policy.min_free_space,
            };
            self.prune_by(request).await?;
        }
        Ok(())
    }

    /// Removes records from the cache, and gives those that were removed.
    pub async fn prune(&self, wish: &Prune) -> Result<Vec<CacheRecord>> {
        let keep = i64::try_from(wish.keep_bytes).unwrap_or(i64::MAX);
        let request = PruneRequest {
            filter: wish.filters.clone(),
            all: wish.internal,
            keep_duration: i64::try_from(wish.unused_for.as_nanos()).unwrap_or(i64::MAX),
            // Field 4, which servers before 0.17 call keepBytes.
            reserved_space: keep,
            max_used_space: keep,
            min_free_space: 0,
        };
        self.prune_by(request).await
    }

    async fn prune_by(&self, request: PruneRequest) -> Result<Vec<CacheRecord>> {
        let mut control = self.control.clone();
        let work = async {
            let mut stream = control.prune(request).await?.into_inner();
            let mut removed = Vec::new();
            while let Some(next) = stream.message().await? {
                if removed.len() < MAX_RECORDS {
                    removed.push(record(next));
                }
            }
            Ok(removed)
        };
        self.call("prune", PRUNE, work).await
    }

    /// Bounds a call in time and names its failure.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        patience: Duration,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            answer = call => answer.map_err(|status| self.error(what, &status)),
            reason = self.link.lost() => Err(Error::Lost(reason)),
            () = tokio::time::sleep(patience) => {
                Err(Error::Lost(format!("no answer to {what} for {} s", patience.as_secs())))
            }
        }
    }

    /// The loss of the connection explains every failure that follows.
    pub(super) fn error(&self, what: &'static str, status: &tonic::Status) -> Error {
        if self.link.is_lost() { Error::Lost(self.link.reason()) } else { Error::refused(what, status) }
    }
}

fn record(record: UsageRecord) -> CacheRecord {
    CacheRecord {
        id: reason(&record.id),
        bytes: u64::try_from(record.size).unwrap_or(0),
        kind: reason(&record.record_type),
        description: reason(&record.description),
        in_use: record.in_use,
        shared: record.shared,
        uses: u64::try_from(record.usage_count).unwrap_or(0),
    }
}
