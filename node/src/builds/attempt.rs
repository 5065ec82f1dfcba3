//! The parts of an attempt between its pod and its result.

use std::path::Path;
use std::time::Duration;

use cloister_build::client::{self, Layout, Secrets, Solve};
use cloister_build::job::{self, Built, Delivery, Job};
use cloister_builder::pod::{self, Facts};
use cloister_crds::{BaseImage, BuildReason, Failure, ImageBuildSpec, StageName};
use cloister_image::Digest;
use cloister_sandbox::{Agent, Connection};
use cloister_source::{Inputs, Limits};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::bases::{Bases, Sources};
use super::caches::Caches;
use super::deliver::{self, Delivered, Outputs};
use super::drive::Driver;
use super::failure::{Memory, RESULT, failure, of_build};
use super::inputs::Mounts;
use super::log::{Lines, Log};
use super::pod::BuildPod;
use super::solve;
use super::ssh::Agents;
use super::status::Status;
use super::steps::Counter;

/// How long the guest, and buildkitd in it, may take to answer; emulation on a busy machine is slow.
const READY: Duration = Duration::from_secs(120);
/// How long counters of a guest that failed may take.
const ASK: Duration = Duration::from_secs(2);
/// How long the last words of a build may take.
const WORDS: Duration = Duration::from_secs(2);
/// Events of the progress that may wait.
const EVENTS: usize = 256;
/// How BuildKit names the step in which the result leaves.
const EXPORT: &str = "exporting to ";

/// One attempt.
pub struct Attempt<'a> {
    /// What all attempts use.
    pub driver: &'a Driver,
    /// Its pod.
    pub pod: &'a BuildPod,
    /// What is built.
    pub spec: &'a ImageBuildSpec,
    /// What the shim says.
    pub facts: &'a Facts,
    /// What the pod mounts.
    pub mounts: &'a Mounts,
    /// The shim's folder.
    pub folder: &'a Path,
    /// A folder of its own, gone with it.
    pub work: &'a Path,
    /// What the world is told.
    pub status: &'a Status,
}

/// What came of an attempt.
#[derive(Debug)]
pub struct Done {
    /// The image's index or manifest.
    pub digest: Digest,
    /// Where it is.
    pub delivered: Delivered,
    /// The images it begins from.
    pub bases: Vec<BaseImage>,
    solve: Duration,
}

impl Done {
    /// One line for the log.
    pub fn summary(&self) -> String {
        let Delivered { pushed, archive, imported, .. } = &self.delivered;
        let mut text = format!("cloister: built {} in {:.1} s", self.digest, self.solve.as_secs_f64());
        for (what, names) in [
            ("pushed as", pushed.as_slice()),
            ("archived in", archive.as_slice()),
            ("on this node as", imported),
        ] {
            if !names.is_empty() {
                text.push_str(&format!("; {what} {}", names.join(", ")));
            }
        }
        text
    }
}

/// What a build is given, beside the machine.
struct Parts {
    source: cloister_source::Prepared,
    bases: Bases,
    caches: job::Caches,
    secrets: Secrets,
    agents: Agents,
}

impl Attempt<'_> {
    /// Does it.
    ///
    /// # Errors
    /// Why there is no result.
    pub async fn run(&self, log: &mut Log) -> Result<Done, Failure> {
        if let Some(why) = solve::refused(self.spec) {
            return Err(failure(BuildReason::InvalidSpec, why));
        }
        let outputs = Outputs::prepare(self.spec, self.mounts, self.pod, self.work)?;
        let room = RESULT.min(self.facts.disk_bytes);
        let caches = Caches::prepare(self.spec, self.mounts, self.work, room)?;
        let begun = self.pod.started.unwrap_or_else(jiff::Timestamp::now);
        self.status.update(|entry| entry.enter(StageName::Boot, begun));
        let ((agent, connection), parts) = tokio::try_join!(self.connect(), self.prepare(&caches, log))?;
        self.status.enter(StageName::Solve);
        let full = |error: client::Error| {
            failure(BuildReason::ImportFailed, format!("no room for the result: {error}"))
        };
        // Of what leaves a machine no more is honest than fits its disk. Base images need not come back.
        let result = Layout::open(self.work.join("result"), room).map_err(full)?;
        let result = result.beside(parts.bases.offered.iter().map(|base| base.offer.clone()));
        let bases = parts.bases.observed.clone();
        let built = self.solve(parts, connection, result.clone(), log).await;
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                let network = self.spec.network == cloister_crds::Network::Egress;
                if let Some(failure) = error.failure() {
                    log.write(format!("{}\n", failure.report()).as_bytes()).await;
                }
                let memory = self.memory(&agent).await;
                return Err(of_build(&error, memory, self.facts.disk_bytes, network));
            }
        };
        let nothing = || failure(BuildReason::DigestMismatch, "the build has made no image");
        let top = built.solved.descriptor.ok_or_else(nothing)?;
        let digest = top.digest;
        let job = deliver::Job {
            spec: self.spec,
            pod: self.pod,
            top,
            status: self.status,
            importer: &self.driver.importer,
            store: &self.driver.store,
        };
        let delivered = outputs.deliver(&job, result, log).await?;
        caches.push(log).await;
        Ok(Done { digest, delivered, bases, solve: built.solve })
    }

    /// A line to buildkitd.
    async fn connect(&self) -> Result<(Agent, Connection), Failure> {
        let lost = |error: &dyn std::fmt::Display| {
            failure(BuildReason::BuilderLost, format!("the build's machine does not answer: {error}"))
        };
        let (agent, _) =
            Agent::connect(self.facts.dialer.clone(), READY).await.map_err(|error| lost(&error))?;
        self.status.enter(StageName::Connect);
        let connection =
            cloister_builder::connect(&agent, &self.facts.container, cloister_builder::SOCKET, READY).await;
        let connection = connection.map_err(|error| lost(&error))?;
        // Its cgroups are there now.
        let limits = cloister_builder::limit(&agent, &self.facts.container, self.facts.memory_bytes);
        limits.await.map_err(|error| lost(&error))?;
        Ok((agent, connection))
    }

    /// Everything on our side.
    async fn prepare(&self, caches: &Caches, log: &mut Log) -> Result<Parts, Failure> {
        let secrets = self.mounts.secrets(self.spec)?;
        let keys = self.mounts.keys(self.spec)?;
        let agents = Agents::start(keys, self.work).await;
        let agents =
            agents.map_err(|error| failure(BuildReason::InvalidSpec, format!("spec.secrets: {error:#}")))?;
        let mut inputs = Inputs {
            mounts: self.mounts.all().clone(),
            ca_bundle: self.spec.ca_bundle.clone(),
            pull_secrets: self.spec.image_pull_secrets.clone(),
            limits: Limits { reach: self.driver.reach, ..Limits::default() },
            ..Inputs::default()
        };
        if self.spec.source.upload.is_some() {
            let input = pod::input(self.folder).await;
            let input = input.map_err(|error| {
                failure(BuildReason::SourceUnavailable, format!("the upload can't be read: {error}"))
            })?;
            inputs.upload = Some(Box::new(input));
            let kept = self.driver.uploads.folder(&self.pod.owner);
            inputs.uploads = Some(kept.map_err(|error| {
                failure(BuildReason::SourceUnavailable, format!("no room for the upload: {error}"))
            })?);
        }
        let source =
            cloister_source::prepare(&self.spec.source, &self.spec.dockerfile, &mut inputs, self.work)
                .await
                .map_err(|error| failure(error.reason(), error.to_string()))?;
        let text = source.dockerfile.first().map(|(_, text)| String::from_utf8_lossy(text).into_owned());
        let sources = Sources {
            scope: self.driver.scope.clone(),
            converter: self.driver.converter.clone(),
            store: self.driver.store.clone(),
            credentials: self.mounts.registries(self.spec)?.into(),
            certificates: self.mounts.certificates(self.spec, self.work)?,
            fresh: self.spec.triggers.as_ref().is_some_and(|triggers| triggers.base_image.is_some()),
        };
        let args = solve::args(self.spec);
        let bases = sources.find(&text.unwrap_or_default(), &args, log, self.status.voice()).await?;
        let caches = caches.offer(log).await;
        Ok(Parts { source, bases, caches, secrets, agents })
    }

    async fn solve(
        &self,
        parts: Parts,
        connection: Connection,
        result: Layout,
        log: &mut Log,
    ) -> cloister_build::client::Result<Built> {
        let job = Job {
            solve: Solve { deadline: Some(self.left()), ..solve::solve(self.spec) },
            context: parts.source.context,
            dockerfile: parts.source.dockerfile,
            shared_key: self.pod.build_name(),
            secrets: parts.secrets,
            agents: parts.agents.offered.clone(),
            registries: None,
            bases: parts.bases.offered,
            caches: parts.caches,
            exporter: solve::exporter(self.spec),
            delivery: Delivery::Blobs(result),
        };
        let (events, mut heard) = mpsc::channel(EVENTS);
        let connect = std::future::ready(Ok::<_, std::convert::Infallible>(connection));
        let run = job.run(connect, std::future::pending(), events, CancellationToken::new());
        let follow = async {
            let (mut lines, mut counter) = (Lines::default(), Counter::default());
            while let Some(event) = heard.recv().await {
                if let cloister_build::progress::Event::Step { name, .. } = &event
                    && name.starts_with(EXPORT)
                {
                    self.status.enter(StageName::Export);
                }
                if counter.note(&event) {
                    self.status.update(|entry| entry.steps = Some(counter.steps()));
                }
                log.write(&lines.of(&event)).await;
            }
        };
        // The agents' keys stay as long as a step may ask.
        let (built, ()) = tokio::join!(run, follow);
        drop(parts.agents);
        built
    }

    /// What is left of the build's time: a moment less than kubelet gives it, so that there is time to say so.
    fn left(&self) -> Duration {
        let passed = self.pod.started.map(|begun| jiff::Timestamp::now().duration_since(begun));
        let passed = passed.and_then(|passed| Duration::try_from(passed).ok()).unwrap_or_default();
        let whole = Duration::from(self.spec.timeout);
        whole.saturating_sub(passed).saturating_sub(WORDS).max(WORDS)
    }

    /// What the guest says of its memory.
    async fn memory(&self, agent: &Agent) -> Memory {
        let limit = self.facts.memory_bytes;
        match tokio::time::timeout(ASK, agent.stats(&self.facts.container)).await {
            Ok(Ok(stats)) => {
                Memory { killed: stats.oom_kills > 0, limit, peak: stats.memory_peak_bytes.min(limit) }
            }
            _ => Memory { limit, ..Memory::default() },
        }
    }
}
