//! One attempt, from its pod's shim to its result: what a process that takes over in the middle can do again from the
//! beginning, in the same machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_builder::pod::{Control, Facts};
use cloister_crds::{BuildReason, Failure, ImageBuild, ImageBuildSpec, Sizes};
use cloister_image::source::registry::Reach;
use cloister_image::{Platform, Store};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::archive::Logs;
use super::attempt::{Attempt, Done};
use super::events::Events;
use super::inputs::Mounts;
use super::log::Log;
use super::metrics::Metrics;
use super::place::{self, Place};
use super::pod::BuildPod;
use super::status::{Result as Told, Status};
use super::trust::{self, Verdict};
use super::uploads::Uploads;
use crate::blocking;
use crate::containerd::scope::Scope;
use crate::differ::convert::Converter;
use crate::import::{Importer, local};

/// Pauses between two looks at a build that can't be read, or at a pod that is refused; the latter grow up to the second.
const AGAIN: Duration = Duration::from_secs(1);
const RARELY: Duration = Duration::from_secs(30);
/// How long a pod whose machine is gone may take to say why, and how often it is asked.
const EXPLAINED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);

/// What every attempt of this node uses.
pub struct Driver {
    /// The API server.
    pub client: Client,
    /// What is told about builds.
    pub events: Events,
    /// This node's name.
    pub node: String,
    /// Folder of the pods' state.
    pub pods: PathBuf,
    /// Folder of what is on its way; only root can enter it.
    pub work: PathBuf,
    /// The image store.
    pub store: Store,
    /// containerd.
    pub scope: Scope,
    /// Makes layers of containerd's blobs.
    pub converter: Arc<Converter>,
    /// Brings results into containerd.
    pub importer: Importer,
    /// Logs that are kept.
    pub logs: Logs,
    /// Uploaded sources that are kept.
    pub uploads: Uploads,
    /// Attempts that may run at once.
    pub places: Arc<Semaphore>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Which servers are asked for sources.
    pub reach: Reach,
}

impl Driver {
    /// Drives the attempt of a pod to its end. Dropped, it leaves the machine as it is, and the build in it ends.
    pub async fn drive(&self, pod: &BuildPod) {
        let (Place { folder, facts, control }, mounts, spec, well) = self.trusted(pod).await;
        if let Some(well) = well {
            return end(pod, Some(control), &folder, well).await;
        }
        // Closed only when the process ends.
        let Ok(_place) = self.places.acquire().await else { return };
        tracing::info!(pod = pod.full_name(), warm = facts.warm, "building");
        let kept = self.logs.open(&pod.namespace, &pod.build, pod.attempt);
        let kept = kept.inspect_err(|error| tracing::warn!("a build's log is not kept: {error}")).ok();
        let mut log = Log::new(control, kept);
        let status = Status::new(&self.client, &self.events, pod, &self.node);
        let running = self.metrics.running();
        let outcome = self.attempt(pod, &spec, &facts, &mounts, &folder, &status, &mut log).await;
        drop(running);
        self.metrics.ended(outcome.as_ref().err().map(|failure| failure.reason));
        self.finish(pod, &folder, outcome, status, log).await;
    }

    /// Waits until the pod is its attempt's: what refuses it now, such as a status that is not written yet, may pass, and
    /// who drops this when the pod has gone ends it. The last is how the attempt has ended, if it has.
    async fn trusted(&self, pod: &BuildPod) -> (Place, Mounts, ImageBuildSpec, Option<bool>) {
        let name = pod.full_name();
        let (mut pause, mut told) = (AGAIN, String::new());
        loop {
            let (place, build) = tokio::join!(place::find(&self.pods, &name), self.build(pod));
            let mounts = Mounts::new(place.facts.mounts.clone());
            let why = match (build, mounts.spec()) {
                (None, _) => "there is no such build".to_owned(),
                (_, Err(why)) => format!("cannot read its spec: {why}"),
                (Some(build), Ok(spec)) => match trust::judge(pod, &build, &spec) {
                    Verdict::Trusted(_) => return (place, mounts, spec, None),
                    Verdict::Over { well } => return (place, mounts, spec, Some(well)),
                    Verdict::Refused(why) => why.to_owned(),
                },
            };
            if why != told {
                tracing::warn!(pod = name, "not driven: {why}");
                told = why;
            }
            drop(place);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RARELY);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one attempt, each made once")]
    async fn attempt(
        &self,
        pod: &BuildPod,
        spec: &ImageBuildSpec,
        facts: &Facts,
        mounts: &Mounts,
        folder: &std::path::Path,
        status: &Status,
        log: &mut Log,
    ) -> Result<(Done, Option<Sizes>), Failure> {
        let work = tempfile::Builder::new().prefix("attempt-").tempdir_in(&self.work);
        let work = work.map_err(|error| {
            let why = format!("cannot make a folder in {}: {error}", self.work.display());
            super::failure::failure(BuildReason::ImportFailed, why)
        })?;
        let attempt = Attempt { driver: self, pod, spec, facts, mounts, folder, work: work.path(), status };
        let done = attempt.run(log).await?;
        self.uploads.forget(&pod.owner);
        let sizes = match done.delivered.sizes.clone() {
            Some(sizes) => Some(sizes),
            None => self.sizes(&done.delivered.imported).await,
        };
        Ok((done, sizes))
    }

    /// The last words: to the log, the status, the shim, in this order.
    async fn finish(
        &self,
        pod: &BuildPod,
        folder: &std::path::Path,
        outcome: Result<(Done, Option<Sizes>), Failure>,
        status: Status,
        mut log: Log,
    ) {
        let well = outcome.is_ok();
        let last = match &outcome {
            Ok((done, _)) => format!("{}\n", done.summary()),
            Err(failure) => format!("cloister: {}: {}\n", failure.reason.as_str(), failure.message),
        };
        log.write(last.as_bytes()).await;
        let (log_tail, control) = log.finish().await;
        let told = match outcome {
            Ok((done, sizes)) => {
                let result = Told { sizes, log_tail, bases: done.bases };
                let digest = done.digest.to_string();
                status.finish(result, |entry| entry.digest = Some(digest)).await
            }
            // The operator reads it from the pod.
            Err(failure) if failure.reason == BuildReason::BuilderLost && self.explained(pod).await => Ok(()),
            Err(failure) => {
                let result = Told { log_tail, ..Told::default() };
                tracing::info!(pod = pod.full_name(), reason = failure.reason.as_str(), "build failed");
                status.finish(result, |entry| entry.failure = Some(failure)).await
            }
        };
        if let Err(error) = told {
            tracing::warn!(pod = pod.full_name(), "cannot write how the build ended: {error}");
        }
        end(pod, control, folder, well).await;
    }

    /// The build of a pod, as the API server has it now; `None` when it is gone.
    async fn build(&self, pod: &BuildPod) -> Option<ImageBuild> {
        let api: Api<ImageBuild> = Api::namespaced(self.client.clone(), &pod.namespace);
        loop {
            match api.get_opt(&pod.build).await {
                Ok(found) => return found,
                Err(error) => tracing::warn!(pod = pod.full_name(), "cannot read its build: {error}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether the pod itself says why its machine is gone: its deadline, an eviction, somebody who deleted it.
    async fn explained(&self, pod: &BuildPod) -> bool {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let until = Instant::now() + EXPLAINED;
        while Instant::now() < until {
            match api.get_opt(&pod.name).await {
                Ok(Some(found)) if found.metadata.deletion_timestamp.is_some() => return true,
                Ok(Some(found)) => {
                    let status = found.status.unwrap_or_default();
                    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
                        return status.reason.is_some();
                    }
                }
                Ok(None) => return true,
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// How large the image of these names is, if it is here.
    async fn sizes(&self, names: &[String]) -> Option<Sizes> {
        let image = local::find(&self.scope, names.first()?, &Platform::host()).await.ok()??;
        let store = self.store.clone();
        let sizes = blocking::run(move || {
            let mut unpacked: u64 = 0;
            for layer in &image.layers {
                if let Some(found) = store.open_layer(&layer.diff_id)? {
                    unpacked = unpacked.saturating_add(found.tar()?.len);
                }
            }
            let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            Ok(Sizes {
                compressed_bytes: number(image.sent()),
                unpacked_bytes: number(unpacked),
                layers: i32::try_from(image.layers.len()).unwrap_or(i32::MAX),
            })
        });
        sizes.await.inspect_err(|error| tracing::debug!("sizes of an image: {error}")).ok()
    }
}

/// Ends the container, by the line there is or a new one.
async fn end(pod: &BuildPod, control: Option<Control>, folder: &std::path::Path, well: bool) {
    let control = match control {
        Some(control) => Ok(control),
        None => Control::connect(folder).await,
    };
    let ended = match control {
        Ok(control) => control.end(u8::from(!well)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(pod = pod.full_name(), "its shim is gone: {error}");
    }
}
