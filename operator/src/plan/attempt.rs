//! A running attempt: what its pod and its own entry in the status say about it.

use cloister_crds::{Attempt, BuildReason, Failure, ImageBuild, Stage, StageName};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Settings;

/// How long after its time a pod may stay that should be gone.
const OVERDUE: SignedDuration = SignedDuration::from_secs(60);
/// Most characters of a message that comes from elsewhere.
const MESSAGE: usize = 1024;

/// What matters of a build's pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The attempt it was made for.
    pub attempt: i64,
    /// When it was made.
    pub created: Timestamp,
    /// The end of its grace period, once it is being deleted.
    pub deleting: Option<Timestamp>,
    /// Its node.
    pub node: Option<String>,
    /// When it got its node.
    pub scheduled: Option<Timestamp>,
    /// When kubelet took it on: what its deadline counts from.
    pub started: Option<Timestamp>,
    /// How far it is.
    pub phase: PodPhase,
    /// One word by whoever ended it, such as "Evicted".
    pub reason: Option<String>,
    /// One line about that, or about what it waits for.
    pub message: Option<String>,
    /// When its container ended.
    pub finished: Option<Timestamp>,
    /// How its container ended.
    pub exit_code: Option<i32>,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// Waits for its node, volumes or image.
    #[default]
    Pending,
    /// Its container runs.
    Running,
    /// Its container ended with exit code 0.
    Succeeded,
    /// It failed.
    Failed,
}

impl PodPhase {
    /// Whether it ends here.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl BuildPod {
    /// Whether the pod should have been gone for a while: nobody on its node ends it.
    pub fn is_lost(&self, now: Timestamp) -> bool {
        self.deleting.is_some_and(|until| until + OVERDUE <= now)
    }

    /// Whether it takes one of the places that are limited.
    pub fn occupies(&self, now: Timestamp) -> bool {
        !self.phase.is_final() && !self.is_lost(now)
    }
}

/// What is to be said about an attempt.
#[derive(Debug, PartialEq)]
pub enum Judged {
    /// It goes on.
    Runs {
        /// With what.
        reason: BuildReason,
        /// For people.
        message: String,
        /// When this has to be looked at again.
        again: Option<Timestamp>,
    },
    /// It has ended, with a result or with this failure.
    Ended(Option<Failure>),
}

/// Judges an attempt by its entry and its pod, and notes in the entry what the pod shows.
pub fn judge(
    attempt: &mut Attempt,
    pod: Option<&BuildPod>,
    build: &ImageBuild,
    settings: &Settings,
    now: Timestamp,
) -> Judged {
    if let Some(pod) = pod {
        note(attempt, pod);
    }
    // The node writes the digest last: what ends without one has no result.
    if attempt.failure.is_some() || attempt.digest.is_some() {
        return Judged::Ended(attempt.failure.clone());
    }
    if build.spec.cancel {
        return ended(BuildReason::Cancelled, "spec.cancel is true".into());
    }
    let Some(pod) = pod else {
        let name = attempt.pod.as_deref().unwrap_or("?");
        return ended(BuildReason::PodEvicted, format!("pod {name} was deleted while it built"));
    };
    if pod.phase.is_final() {
        return end(pod, settings, now);
    }
    if pod.is_lost(now) {
        return ended(
            BuildReason::NodeLost,
            format!("nobody on node {} ends pod {}", of(&pod.node), pod.name),
        );
    }
    let timeout = SignedDuration::try_from(std::time::Duration::from(build.spec.timeout)).unwrap_or_default();
    let deadline = pod.started.map(|started| started + timeout + OVERDUE);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return ended(
            BuildReason::DeadlineExceeded,
            format!("the build took longer than {} and its node did not end it", build.spec.timeout),
        );
    }
    let again = pod.deleting.map(|until| until + OVERDUE).or(deadline);
    let (reason, message) = progress(attempt, pod);
    Judged::Runs { reason, message, again }
}

/// What the pod shows that belongs into the entry.
fn note(attempt: &mut Attempt, pod: &BuildPod) {
    attempt.start_time.get_or_insert(Time(pod.created));
    if pod.node.is_some() {
        attempt.node.clone_from(&pod.node);
    }
    let took = pod.scheduled.map(|at| at.duration_since(pod.created).as_millis().max(0));
    let took = took.and_then(|took| i64::try_from(took).ok());
    match attempt.stages.iter_mut().find(|stage| stage.name == StageName::Schedule) {
        Some(stage) => stage.duration_milliseconds = stage.duration_milliseconds.or(took),
        None => attempt.stages.push(Stage {
            name: StageName::Schedule,
            start_time: Some(Time(pod.created)),
            duration_milliseconds: took,
        }),
    }
}

/// What an ended pod without a result means.
fn end(pod: &BuildPod, settings: &Settings, now: Timestamp) -> Judged {
    use BuildReason as R;
    let message = of(&pod.message);
    let with = |what: &str| if message.is_empty() { what.to_owned() } else { format!("{what}: {message}") };
    let reason = pod.reason.as_deref().unwrap_or_default();
    match reason {
        "DeadlineExceeded" => {
            return ended(R::DeadlineExceeded, with("the build took longer than spec.timeout"));
        }
        "OOMKilled" => {
            return ended(
                R::OutOfMemory,
                with("the build needed more memory than spec.resources.limits.memory"),
            );
        }
        "NodeLost" | "NodeShutdown" | "Shutdown" | "Terminated" => {
            return ended(R::NodeLost, with(&format!("node {} ended the pod ({reason})", of(&pod.node))));
        }
        // Kubelet's words for pods that it does not take on or gives up.
        "Evicted" | "Preempting" | "Preempted" | "NodeAffinity" | "UnexpectedAdmissionError" => {
            return ended(R::PodEvicted, with(&format!("pod {} ended ({reason})", pod.name)));
        }
        other if other.starts_with("OutOf") => {
            return ended(R::PodEvicted, with(&format!("pod {} ended ({other})", pod.name)));
        }
        _ => {}
    }
    // What the shim refuses for good it says with the reason.
    if let Some((_, why)) = message.split_once(&format!("{}: ", R::CacheTooLarge.as_str())) {
        return ended(R::CacheTooLarge, why.to_owned());
    }
    // The node's last words may still be on their way.
    let until = pod.finished.unwrap_or(pod.created) + settings.result_grace;
    if until > now {
        let message = "the pod has ended; its result is awaited".to_owned();
        return Judged::Runs { reason: R::Building, message, again: Some(until) };
    }
    let code = pod.exit_code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
    ended(R::BuilderLost, with(&format!("pod {} ended with {code} and no result", pod.name)))
}

/// What goes on.
fn progress(attempt: &Attempt, pod: &BuildPod) -> (BuildReason, String) {
    use BuildReason as R;
    let begun = |names: &[StageName]| attempt.stages.iter().any(|stage| names.contains(&stage.name));
    let message = of(&pod.message);
    let with = |what: String| if message.is_empty() { what } else { format!("{what}: {message}") };
    if pod.node.is_none() {
        return (R::Scheduling, with(format!("pod {} waits for a node", pod.name)));
    }
    let node = of(&pod.node);
    if begun(&[StageName::Export, StageName::Import, StageName::Push, StageName::Archive]) {
        return (R::Distributing, format!("the result leaves pod {} on node {node}", pod.name));
    }
    match begun(&[StageName::Solve]) {
        true => (R::Building, format!("pod {} builds on node {node}", pod.name)),
        false => (R::Starting, with(format!("pod {} starts on node {node}", pod.name))),
    }
}

fn ended(reason: BuildReason, message: String) -> Judged {
    let message = message.chars().take(MESSAGE).collect();
    Judged::Ended(Some(Failure { reason, message, ..Failure::default() }))
}

fn of(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}
