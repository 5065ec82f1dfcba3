//! The part of a build's status that the driver writes: the attempt that runs here, and the newest result.
//!
//! Two managers. `cloister-build/NODE` has the attempt, and gives it up by the operator's word only: what is late is refused
//! as a conflict, and dropped. `cloister-build` has what belongs to the build and not to an attempt, whichever node built last.

use std::time::Duration;

use cloister_crds::{BaseImage, Failure, ImageBuild, Sizes, Stage, StageName, Steps};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::events::{Events, Voice};
use super::pod::BuildPod;

/// Shortest time between two writes about one attempt.
const PACE: Duration = Duration::from_secs(1);
/// How long one write may take.
const CALL: Duration = Duration::from_secs(10);
/// First pause between two tries of a write that has to be made, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long such a write is tried.
const PATIENCE: Duration = Duration::from_secs(120);
/// Manager of what belongs to the build.
const MANAGER: &str = "cloister-build";

/// What is known of the attempt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Stages that have begun.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stages: Vec<Stage>,
    /// Steps, once there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
    /// The result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl Entry {
    /// A stage begins, and the one before it ends.
    pub fn enter(&mut self, name: StageName, at: Timestamp) {
        self.leave(at);
        self.stages.retain(|stage| stage.name != name);
        self.stages.push(Stage { name, start_time: Some(Time(at)), duration_milliseconds: None });
    }

    /// The running stage ends.
    pub fn leave(&mut self, at: Timestamp) {
        if let Some(last) = self.stages.last_mut().filter(|stage| stage.duration_milliseconds.is_none()) {
            let took = last.start_time.as_ref().map_or(0, |begun| at.duration_since(begun.0).as_millis());
            last.duration_milliseconds = i64::try_from(took.max(0)).ok();
        }
    }
}

/// What there is to say of the newest result.
#[derive(Debug, Clone, Default)]
pub struct Result {
    /// How large the image is.
    pub sizes: Option<Sizes>,
    /// The end of the log.
    pub log_tail: String,
    /// The images it begins from.
    pub bases: Vec<BaseImage>,
}

/// Writes the status of one attempt.
#[derive(Debug)]
pub struct Status {
    target: Target,
    entry: watch::Sender<Entry>,
    voice: Voice,
    writer: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Target {
    api: Api<ImageBuild>,
    pod: BuildPod,
    manager: String,
}

impl Status {
    /// For the attempt of `pod` on `node`.
    pub fn new(client: &Client, events: &Events, pod: &BuildPod, node: &str) -> Self {
        let api = Api::namespaced(client.clone(), &pod.namespace);
        let target = Target { api, pod: pod.clone(), manager: format!("{MANAGER}/{node}") };
        let (entry, changes) = watch::channel(Entry::default());
        let writer = tokio::spawn(follow(target.clone(), changes));
        Self { target, entry, voice: events.about(pod), writer }
    }

    /// Changes what is known; it is written soon.
    pub fn update(&self, change: impl FnOnce(&mut Entry)) {
        self.entry.send_modify(change);
    }

    /// Where the attempt tells what it does.
    pub fn voice(&self) -> &Voice {
        &self.voice
    }

    /// The next stage begins.
    pub fn enter(&self, name: StageName) {
        self.update(|entry| entry.enter(name, Timestamp::now()));
    }

    /// Writes the last that there is to say, the digest or the failure after everything else.
    ///
    /// # Errors
    /// When the API server does not take it within two minutes. That the attempt is no longer ours is none.
    pub async fn finish(
        self,
        result: Result,
        change: impl FnOnce(&mut Entry),
    ) -> std::result::Result<(), kube::Error> {
        // One write at a time: an older one must not arrive after this.
        self.writer.abort();
        let _ = self.writer.await;
        self.entry.send_modify(|entry| entry.leave(Timestamp::now()));
        let told = self.target.insist(MANAGER, self.target.result(&result)).await;
        if let Err(error) = told {
            tracing::warn!(pod = self.target.pod.full_name(), "cannot write the result's sizes: {error}");
        }
        self.entry.send_modify(change);
        let entry = self.entry.borrow().clone();
        self.target.insist(&self.target.manager, self.target.attempt(&entry)).await
    }
}

/// Writes what has changed, and then waits: the first change is written at once.
async fn follow(target: Target, mut changes: watch::Receiver<Entry>) {
    while changes.changed().await.is_ok() {
        let entry = changes.borrow_and_update().clone();
        let written = Instant::now();
        if let Err(error) = target.apply(&target.manager, target.attempt(&entry)).await {
            tracing::debug!(pod = target.pod.full_name(), "status: {error}");
        }
        tokio::time::sleep_until(written + PACE).await;
    }
}

impl Target {
    fn object(&self, status: Value) -> Value {
        json!({
            "apiVersion": ImageBuild::api_version(&()),
            "kind": ImageBuild::kind(&()),
            // Another build of this name is a conflict.
            "metadata": {"name": self.pod.build, "uid": self.pod.owner},
            "status": status,
        })
    }

    fn attempt(&self, entry: &Entry) -> Value {
        let mut attempt = json!(entry);
        attempt["number"] = self.pod.attempt.into();
        self.object(json!({"attempts": [attempt]}))
    }

    fn result(&self, result: &Result) -> Value {
        let mut status = json!({"logTail": result.log_tail});
        if let Some(sizes) = &result.sizes {
            status["sizes"] = json!(sizes);
        }
        if !result.bases.is_empty() {
            status["triggers"] = json!({"baseImages": result.bases});
        }
        self.object(status)
    }

    async fn apply(&self, manager: &str, object: Value) -> kube::Result<()> {
        let (params, patch) = (PatchParams::apply(manager), Patch::Apply(object));
        let call = self.api.patch_status(&self.pod.build, &params, &patch);
        match tokio::time::timeout(CALL, call).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(kube::Error::Service("no answer in time".into())),
        }
    }

    /// Applies until it is done or refused.
    async fn insist(&self, manager: &str, object: Value) -> kube::Result<()> {
        let end = Instant::now() + PATIENCE;
        let (mut pause, longest) = BACKOFF;
        loop {
            match self.apply(manager, object.clone()).await {
                Ok(()) => return Ok(()),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    tracing::debug!(pod = self.pod.full_name(), "not ours any more: {}", status.message);
                    return Ok(());
                }
                // Refused for what it is: no later try is better.
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                    return Err(kube::Error::Api(status));
                }
                Err(error) if Instant::now() >= end => return Err(error),
                Err(error) => tracing::debug!(pod = self.pod.full_name(), "status: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other() {
        let at = |millisecond| Timestamp::from_millisecond(millisecond).unwrap();
        let mut entry = Entry::default();
        entry.enter(StageName::Boot, at(1000));
        entry.enter(StageName::Connect, at(1500));
        entry.enter(StageName::Solve, at(1400));
        let told: Vec<_> =
            entry.stages.iter().map(|stage| (stage.name, stage.duration_milliseconds)).collect();
        let expected =
            [(StageName::Boot, Some(500)), (StageName::Connect, Some(0)), (StageName::Solve, None)];
        assert_eq!(told, expected);
        entry.leave(at(2000));
        entry.leave(at(9000));
        assert_eq!(entry.stages[2].duration_milliseconds, Some(600));
    }
}
