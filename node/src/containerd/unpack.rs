//! Layers into snapshots, with the calls that containerd's own unpacker makes (`core/unpack/unpacker.go`): whichever
//! snapshotter and differ are configured do the work.

use std::collections::HashMap;
use std::time::Duration;

use cloister_image::{BlobRef, Digest, Runnable};
use tonic::Code;
use tonic::transport::Channel;

use super::images::descriptor;
use super::scope::{Scope, found, made};
use super::{STREAM, failed};
use crate::api::diff::v1 as diff;
use crate::api::snapshots::v1 as snapshots;
use crate::api::types::Mount;
use crate::error::{Error, Result};
use crate::snapshots::chain::chain_id;

/// Names the snapshot that is being made, so that a snapshotter that has it says so.
const TARGET: &str = "containerd.io/snapshot.ref";
/// On a layer: the digest of its tar.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// On a config, with the snapshotter's name: the snapshot that the image needs.
const KEEPS: &str = "containerd.io/gc.ref.snapshot.";
/// How long one layer may take.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Scope {
    fn snapshots(&self) -> snapshots::snapshots_client::SnapshotsClient<Channel> {
        snapshots::snapshots_client::SnapshotsClient::new(self.channel())
    }

    /// Makes the snapshots of an image that `snapshotter` does not have. `unique` tells concurrent callers apart.
    pub async fn unpack(&self, image: &Runnable, snapshotter: &str, unique: &str) -> Result<()> {
        let Some(chain) = chain(image) else { return Ok(()) };
        if !self.has_snapshot(snapshotter, &chain).await? {
            let mut parent = None;
            for (layer, diff_id) in &image.layers {
                let step = Step { snapshotter, unique, layer, diff_id, parent };
                parent = Some(self.unpack_layer(&step).await?);
            }
        }
        let labels = HashMap::from([(format!("{KEEPS}{snapshotter}"), chain.to_string())]);
        self.label(&image.config.digest, labels).await
    }

    /// Whether `snapshotter` has the whole image.
    pub async fn is_unpacked(&self, image: &Runnable, snapshotter: &str) -> Result<bool> {
        match chain(image) {
            Some(chain) => self.has_snapshot(snapshotter, &chain).await,
            None => Ok(true),
        }
    }

    async fn has_snapshot(&self, snapshotter: &str, chain: &Digest) -> Result<bool> {
        let (snapshotter, key) = (snapshotter.to_owned(), chain.to_string());
        let stat = self.request(snapshots::StatSnapshotRequest { snapshotter, key })?;
        Ok(found("look up a snapshot", self.snapshots().stat(stat).await)?.is_some())
    }

    async fn unpack_layer(&self, step: &Step<'_>) -> Result<Digest> {
        let chain = chain_id(step.parent.as_ref(), step.diff_id);
        if self.has_snapshot(step.snapshotter, &chain).await? {
            return Ok(chain);
        }
        let key = format!("extract-{} {chain}", step.unique);
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: step.snapshotter.to_owned(),
            key: key.clone(),
            parent: step.parent.map(|parent| parent.to_string()).unwrap_or_default(),
            labels: target(&chain),
        };
        let reply = self.snapshots().prepare(self.request(prepare)?).await;
        let Some(reply) = made(&format!("prepare a snapshot of {}", step.snapshotter), reply)? else {
            // The snapshotter had the layer, and made the snapshot of it at once.
            return match self.has_snapshot(step.snapshotter, &chain).await? {
                true => Ok(chain),
                false => Err(Error::Containerd(format!("snapshot {key}: somebody else is making it"))),
            };
        };
        let result = self.apply_and_commit(step, &key, &chain, reply.into_inner().mounts).await;
        if result.is_err() {
            let (snapshotter, key) = (step.snapshotter.to_owned(), key);
            let remove = self.request(snapshots::RemoveSnapshotRequest { snapshotter, key })?;
            let _ = self.snapshots().remove(remove).await;
        }
        result.map(|()| chain)
    }

    async fn apply_and_commit(
        &self,
        step: &Step<'_>,
        key: &str,
        chain: &Digest,
        mounts: Vec<Mount>,
    ) -> Result<()> {
        let diff = Some(descriptor(step.layer));
        let mut apply = self.request(diff::ApplyRequest { diff, mounts, ..Default::default() })?;
        apply.set_timeout(STREAM);
        let mut client = diff::diff_client::DiffClient::new(self.channel());
        let layer = step.layer.digest;
        let reply = tokio::time::timeout(PATIENCE, client.apply(apply)).await.map_err(|_| {
            Error::Containerd(format!("layer {layer}: not unpacked in {} s", PATIENCE.as_secs()))
        })?;
        let applied = reply.map_err(|status| match status.code() {
            // The differ's own words: what is wrong with the layer.
            Code::InvalidArgument => Error::Invalid(status.message().to_owned()),
            _ => failed(&format!("unpack layer {layer}"), &status),
        })?;
        let got = applied.into_inner().applied.map(|applied| applied.digest).unwrap_or_default();
        if got != step.diff_id.to_string() {
            return Err(Error::Invalid(format!(
                "layer {layer}: its tar has digest {got}, the config says {}",
                step.diff_id
            )));
        }
        let commit = snapshots::CommitSnapshotRequest {
            snapshotter: step.snapshotter.to_owned(),
            name: chain.to_string(),
            key: key.to_owned(),
            labels: target(chain),
        };
        let reply = self.snapshots().commit(self.request(commit)?).await;
        // Somebody else was faster: what is left of ours goes with the lease.
        if made("commit a snapshot", reply)?.is_none() {
            let (snapshotter, key) = (step.snapshotter.to_owned(), key.to_owned());
            let remove = self.request(snapshots::RemoveSnapshotRequest { snapshotter, key })?;
            found("remove a snapshot", self.snapshots().remove(remove).await)?;
        }
        self.label(&layer, HashMap::from([(UNCOMPRESSED.to_owned(), got)])).await
    }
}

/// One layer on its way.
struct Step<'a> {
    snapshotter: &'a str,
    unique: &'a str,
    layer: &'a BlobRef,
    diff_id: &'a Digest,
    parent: Option<Digest>,
}

fn chain(image: &Runnable) -> Option<Digest> {
    image.layers.iter().fold(None, |below, (_, layer)| Some(chain_id(below.as_ref(), layer)))
}

fn target(chain: &Digest) -> HashMap<String, String> {
    HashMap::from([(TARGET.to_owned(), chain.to_string())])
}
