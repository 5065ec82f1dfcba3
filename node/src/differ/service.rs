//! containerd's diff service (`services/diff/v1/diff.proto`).

use std::path::PathBuf;
use std::sync::Arc;

use cloister_image::{Digest, LayerFile};
use tonic::{Request, Response, Status};

use super::convert::{Converter, Wanted};
use crate::api::diff::v1 as api;
use crate::api::types::{Descriptor, Mount};
use crate::blocking;
use crate::error::{Error, Result};
use crate::metrics::Counters;
use crate::mounts;
use crate::snapshots::record::client_key;
use crate::snapshots::state::State;

/// Media type of what was applied: an uncompressed layer.
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// The service.
#[derive(Debug)]
pub struct Service {
    state: Arc<State>,
    converter: Converter,
    counters: Arc<Counters>,
}

impl Service {
    /// Applies layers to the snapshots of `state`.
    pub fn new(state: Arc<State>, converter: Converter, counters: Arc<Counters>) -> Self {
        Self { state, converter, counters }
    }

    async fn apply_layer(&self, diff: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
        let Some(dir) = unpack_dir(mounts) else {
            return Err(Error::NotOurs(
                "the mounts are not those of a cloister snapshot being unpacked".into(),
            ));
        };
        if diff.media_type.ends_with("+encrypted") {
            return Err(Error::Invalid(format!(
                "layer {}: encrypted layers are not supported; decrypt the image first",
                diff.digest
            )));
        }
        let state = self.state.clone();
        let (name, there) = blocking::run(move || state.unpacking(&dir)).await?;
        let layer = match there {
            Some(layer) => {
                self.counters.layers.shared.inc();
                layer
            }
            None => {
                let digest: Digest = diff.digest.parse().map_err(|error| {
                    Error::Invalid(format!(
                        "layer {}: only sha256 digests are supported: {error}",
                        diff.digest
                    ))
                })?;
                let size = u64::try_from(diff.size)
                    .map_err(|_| Error::Invalid(format!("layer {digest}: a size of {} bytes", diff.size)))?;
                // Not from the call's metadata: containerd 1.7 does not pass them on to a differ.
                let (namespace, _) = client_key(&name);
                self.converter.layer(Wanted { namespace, digest, size }).await?
            }
        };
        let state = self.state.clone();
        blocking::run(move || {
            state.applied(&name, &layer)?;
            descriptor(&layer)
        })
        .await
    }
}

#[tonic::async_trait]
impl api::diff_server::Diff for Service {
    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let request = request.into_inner();
        let diff = request.diff.ok_or_else(|| Error::Invalid("no layer is named".into()))?;
        match self.apply_layer(&diff, &request.mounts).await {
            Ok(applied) => Ok(Response::new(api::ApplyResponse { applied: Some(applied) })),
            Err(error) => {
                if !matches!(error, Error::NotOurs(_)) {
                    self.counters.failed.inc();
                    tracing::warn!(blob = diff.digest, %error, "layer not applied");
                }
                Err(error.into())
            }
        }
    }

    async fn diff(&self, _request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        Err(Error::NotOurs("cloister-diff compares no snapshots".into()).into())
    }
}

/// The folder of the snapshot that is being unpacked, if the mounts are such a snapshot's.
fn unpack_dir(mounts: &[Mount]) -> Option<PathBuf> {
    match mounts {
        [only] if only.r#type == mounts::TYPE && only.options == [mounts::UNPACK] => {
            Some((&only.source).into())
        }
        _ => None,
    }
}

fn descriptor(layer: &LayerFile) -> Result<Descriptor> {
    let size = layer.tar()?.len.cast_signed();
    Ok(Descriptor {
        media_type: TAR.to_owned(),
        digest: layer.diff_id.to_string(),
        size,
        annotations: std::collections::HashMap::new(),
    })
}
