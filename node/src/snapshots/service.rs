//! containerd's snapshots service (`services/snapshots/v1/snapshots.proto`).

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::filter::Filter;
use super::record::{Kind, Record, Time, client_key};
use super::state::{Made, State};
use super::usage;
use crate::api::snapshots::v1 as api;
use crate::api::types::Mount;
use crate::blocking;
use crate::error::{Error, Result};
use crate::metrics::Counters;
use crate::mounts::Mounts;

/// Records in one message of a listing: far below gRPC's 4 MiB, with labels of up to 4 KiB each.
const LIST_BATCH: usize = 100;

/// What is said about a snapshot whose files would belong to other users.
const REMAPPED: &str = "hostUsers: false (a user namespace) is not possible with this snapshotter, whose layers have one owner for all \
     pods; remove it from the pod or use a handler with another snapshotter";

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    state: Arc<State>,
    mounts: Arc<Mounts>,
    counters: Arc<Counters>,
}

impl Service {
    /// Serves what `mounts` knows.
    pub fn new(mounts: Arc<Mounts>, counters: Arc<Counters>) -> Self {
        Self { state: mounts.state.clone(), mounts, counters }
    }

    async fn create(
        &self,
        kind: Kind,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>> {
        let state = self.state.clone();
        let name = key.clone();
        let made =
            blocking::run(move || state.create(kind, &name, &parent, labels.into_iter().collect())).await?;
        if made == Made::Known {
            self.counters.skipped.inc();
            tracing::debug!(key, "the layer is here already");
            return Err(Error::Exists(format!("what snapshot {key} is for")));
        }
        match self.mounts.of(&key, false).await {
            Ok(mounts) => Ok(mounts),
            Err(error) => {
                // containerd knows nothing of it and would only find it at its next collection.
                let state = self.state.clone();
                let _ = blocking::run(move || state.remove(&key)).await;
                Err(error)
            }
        }
    }

    /// Runs disk work on the snapshots.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let state = self.state.clone();
        Ok(blocking::run(move || work(&state)).await?)
    }
}

/// Whether containerd is about to change the owner of every file of a snapshot: it names it `CHAIN…-remap` then.
fn is_remapped(key: &str) -> bool {
    let (_, key) = client_key(key);
    key.starts_with("sha256:") && key.ends_with("-remap")
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        if is_remapped(&request.key) {
            return Err(Error::Invalid(REMAPPED.to_owned()).into());
        }
        let mounts = self.create(Kind::Active, request.key, request.parent, request.labels).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let mounts = self.create(Kind::View, request.key, request.parent, request.labels).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let request = request.into_inner();
        let mounts = self.mounts.of(&request.key, true).await?;
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        self.with(move |state| state.commit(&name, &key, labels.into_iter().collect())).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.with(move |state| state.remove(&key)).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let record = self.state.stat(&request.into_inner().key)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info(record)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let given = request.info.ok_or_else(|| Error::Invalid("no snapshot is named".into()))?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels: BTreeMap<String, String> = given.labels.into_iter().collect();
        let record = self.with(move |state| state.update(&given.name, labels, &paths)).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info(record)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters: Vec<Filter> =
            request.into_inner().filters.iter().map(|text| Filter::parse(text)).collect::<Result<_>>()?;
        let infos: Vec<api::Info> = self.state.list(&filters).into_iter().map(info).collect();
        let batches: Vec<_> = infos
            .chunks(LIST_BATCH)
            .map(|batch| Ok(api::ListSnapshotsResponse { info: batch.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(batches))))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.with(move |state| usage::of(state.store(), &state.find(&key)?)).await?;
        Ok(Response::new(api::UsageResponse {
            size: usage.bytes.cast_signed(),
            inodes: usage.inodes.cast_signed(),
        }))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let mounts = self.mounts.clone();
        blocking::run(move || {
            mounts.cleanup()?;
            mounts.state.cleanup()
        })
        .await?;
        Ok(Response::new(()))
    }
}

fn info(record: Record) -> api::Info {
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: record.name,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(time: Time) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_for_other_users_are_known_by_their_name() {
        assert!(is_remapped("k8s.io/12/sha256:aa-100000-100000-remap"));
        assert!(!is_remapped("k8s.io/12/sha256:aa"));
        assert!(!is_remapped("default/3/my-remap"));
    }
}
