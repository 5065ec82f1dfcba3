//! Carries plans out through the API. Every write names the version of the object that its plan was made from, so that
//! what was decided on an old view is refused and decided again.

use std::time::Duration;

use cloister_crds::{ImageBuild, ImageBuildStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event as Told, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use crate::plan::{Action, Event, FINALIZER};
use crate::pod::{self, PodSettings};

/// Field manager of the finalizer, pods and ConfigMaps.
pub const MANAGER: &str = "cloister-operator";
/// Field manager of the operator's part of the status.
pub const STATUS_MANAGER: &str = "cloister-operator-status";
/// Most bytes of an event's note.
const NOTE: usize = 1000;

/// A step that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object has changed since it was looked at.
    #[error("{0} has changed meanwhile")]
    Conflict(String),
    /// A pod of this name is another's.
    #[error("a pod {0} exists and is not of this build")]
    Taken(String),
    /// The API server refused the pod.
    #[error("cannot make pod {0}: {1}")]
    Refused(String, #[source] Box<kube::Error>),
    /// The API server refused something else, or could not be reached.
    #[error("cannot {0}: {1}")]
    Api(&'static str, #[source] Box<kube::Error>),
    /// The API server did not answer in time.
    #[error("no answer about {0} in time")]
    Time(String),
    /// A spec is no JSON.
    #[error("the spec of {0}: {1}")]
    Json(String, #[source] serde_json::Error),
}

impl Error {
    /// Every word that [`Error::kind`] has.
    pub const KINDS: [&str; 6] = ["conflict", "taken", "refused", "api", "time", "json"];

    /// One word for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "conflict",
            Self::Taken(_) => "taken",
            Self::Refused(..) => "refused",
            Self::Api(..) => "api",
            Self::Time(_) => "time",
            Self::Json(..) => "json",
        }
    }

    fn api(what: &'static str, object: &str) -> impl FnOnce(kube::Error) -> Self {
        move |error| match code(&error) {
            Some(409) => Self::Conflict(object.to_owned()),
            _ => Self::Api(what, Box::new(error)),
        }
    }
}

/// The HTTP status of an answer.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The objects around one build.
pub struct Executor<'a> {
    client: &'a Client,
    build: &'a ImageBuild,
    name: String,
    /// The version that the next write is meant for.
    version: Option<String>,
}

impl<'a> Executor<'a> {
    /// For a build as it was looked at.
    pub fn new(client: &'a Client, build: &'a ImageBuild) -> Self {
        Self { client, build, name: build.name_any(), version: build.resource_version() }
    }

    fn namespaced<K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(
        &self,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.build.namespace().unwrap_or_default())
    }

    /// Does one thing of a plan.
    pub async fn act(&mut self, action: &Action, pods: &PodSettings, full: &[String]) -> Result<(), Error> {
        match action {
            Action::Hold => self.finalizers(true).await,
            Action::Release => self.finalizers(false).await,
            Action::CreatePod(number) => self.create(*number, pods, full).await,
            Action::DeletePod { name, uid } => self.delete_pod(name, uid).await,
            Action::Forget(numbers) => self.forget(numbers).await,
            Action::DeleteBuild => self.delete_build().await,
        }
    }

    async fn finalizers(&mut self, held: bool) -> Result<(), Error> {
        let mut all = self.build.metadata.finalizers.clone().unwrap_or_default();
        all.retain(|name| name != FINALIZER);
        if held {
            all.push(FINALIZER.to_owned());
        }
        let patch = json!({"metadata": {"resourceVersion": self.version, "finalizers": all}});
        let builds: Api<ImageBuild> = self.namespaced();
        let done = builds.patch(&self.name, &managed(), &Patch::Merge(patch)).await;
        match done {
            Err(error) if code(&error) == Some(404) => Ok(()),
            done => done.map(drop).map_err(Error::api("change the finalizers", &self.name)),
        }
    }

    /// Makes the pod of an attempt and the ConfigMap with its spec. Both have the attempt's name: what is there already
    /// was made by a try before.
    async fn create(&self, number: i64, settings: &PodSettings, full: &[String]) -> Result<(), Error> {
        let builds: Api<ImageBuild> = self.namespaced();
        // The cache may be behind, and has no files.
        let live = builds.get(&self.name).await.map_err(Error::api("read the build", &self.name))?;
        let attempts = live.status.iter().flat_map(|status| &status.attempts);
        let intent = attempts.into_iter().find(|attempt| {
            attempt.number == number
                && attempt.start_time.is_none()
                && attempt.completion_time.is_none()
                && Some(attempt.generation) == live.metadata.generation
        });
        let Some(intent) = intent.filter(|_| live.uid() == self.build.uid()) else {
            return Err(Error::Conflict(self.name.clone()));
        };
        let name = pod::name(&self.name, number);
        let config = pod::config_map(&live, intent).map_err(|error| Error::Json(self.name.clone(), error))?;
        let pod = pod::pod(&live, intent, settings, full);
        let refused = |error| Error::Refused(name.clone(), Box::new(error));
        let configs: Api<ConfigMap> = self.namespaced();
        match configs.create(&posted(), &config).await {
            Ok(_) => {}
            Err(error) if code(&error) == Some(409) => {
                let there = configs.get_opt(&name).await.map_err(refused)?;
                // Of another generation, and no pod was made from it.
                if there.is_some_and(|there| there.data != config.data || !self.owns(&there)) {
                    let _ = configs.delete(&name, &DeleteParams::default()).await.map_err(refused)?;
                    return Err(Error::Conflict(name));
                }
            }
            Err(error) => return Err(refused(error)),
        }
        let pods: Api<Pod> = self.namespaced();
        match pods.create(&posted(), &pod).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(409) => {
                let there = pods.get_opt(&name).await.map_err(refused)?;
                match there.is_none_or(|there| self.owns(&there)) {
                    true => Ok(()),
                    false => Err(Error::Taken(name)),
                }
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn owns<K: Resource>(&self, object: &K) -> bool {
        let mut owners = object.meta().owner_references.iter().flatten();
        owners.any(|owner| Some(&owner.uid) == self.build.metadata.uid.as_ref())
    }

    async fn delete_pod(&self, name: &str, uid: &str) -> Result<(), Error> {
        let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        gone(self.namespaced::<Pod>().delete(name, &params).await.map(drop), "delete the pod", name)
    }

    /// Removes attempts from the status, with what was made for them.
    async fn forget(&mut self, numbers: &[i64]) -> Result<(), Error> {
        for number in numbers {
            let name = pod::name(&self.name, *number);
            let deleted = self.namespaced::<ConfigMap>().delete(&name, &DeleteParams::default()).await;
            gone(deleted.map(drop), "delete the ConfigMap", &name)?;
        }
        // Nodes own parts of these entries: applying without them would not remove them.
        let status = self.build.status.iter().flat_map(|status| &status.attempts);
        let kept: Vec<_> = status.filter(|attempt| !numbers.contains(&attempt.number)).collect();
        let patch = json!({"metadata": {"resourceVersion": self.version}, "status": {"attempts": kept}});
        let builds: Api<ImageBuild> = self.namespaced();
        let done = builds.patch_status(&self.name, &managed(), &Patch::Merge(patch)).await;
        let done = done.map_err(Error::api("forget attempts", &self.name))?;
        self.version = done.resource_version();
        Ok(())
    }

    async fn delete_build(&self) -> Result<(), Error> {
        let only = Preconditions { uid: self.build.uid(), resource_version: self.version.clone() };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        gone(
            self.namespaced::<ImageBuild>().delete(&self.name, &params).await.map(drop),
            "delete the build",
            &self.name,
        )
    }

    /// Applies the operator's part of the status.
    pub async fn status(&mut self, status: &ImageBuildStatus) -> Result<(), Error> {
        let object = json!({
            "apiVersion": ImageBuild::api_version(&()),
            "kind": ImageBuild::kind(&()),
            "metadata": {"name": self.name, "resourceVersion": self.version},
            "status": status,
        });
        let builds: Api<ImageBuild> = self.namespaced();
        let params = PatchParams::apply(STATUS_MANAGER).force();
        let done = builds.patch_status(&self.name, &params, &Patch::Apply(object)).await;
        let done = done.map_err(Error::api("write the status", &self.name))?;
        self.version = done.resource_version();
        Ok(())
    }

    /// Tells about a new state. That nobody hears of it is no reason to stop.
    pub async fn tell(&self, recorder: &Recorder, event: &Event) {
        let mut note = event.note.clone();
        note.truncate(note.floor_char_boundary(NOTE));
        let told = Told {
            type_: if event.warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.as_str().to_owned(),
            note: Some(note),
            action: "Build".to_owned(),
            secondary: None,
        };
        let object = self.build.object_ref(&());
        let published = recorder.publish(&told, &object);
        match tokio::time::timeout(Duration::from_secs(5), published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(build = self.name, "event: {error}"),
            Err(_) => tracing::debug!(build = self.name, "event: no answer in time"),
        }
    }
}

fn managed() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn posted() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// What is gone, or was replaced by another of its name, is deleted.
fn gone(done: kube::Result<()>, what: &'static str, name: &str) -> Result<(), Error> {
    match done {
        Err(error) if matches!(code(&error), Some(404 | 409)) => {
            tracing::debug!(name, "cannot {what}: it is gone");
            Ok(())
        }
        done => done.map_err(Error::api(what, name)),
    }
}
