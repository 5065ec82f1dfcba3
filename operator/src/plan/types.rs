//! What a decision is made of.

use cloister_crds::{Attempt, BuildReason, ImageBuildStatus};
use jiff::{SignedDuration, Timestamp};

use super::BuildPod;

/// The finalizer of a build: its pods end before it does.
pub const FINALIZER: &str = "cloister.dev/image-build";

/// What is seen of the world around a build.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The build's pods. Of the newest attempt it is certain whether there is one.
    pub pods: Vec<BuildPod>,
    /// Names of the nodes that `spec.output.nodes` selects.
    pub nodes: Vec<String>,
    /// Whether it is this build's turn.
    pub turn: Turn,
    /// Between 0 and 1, the same for each look at one attempt: spreads retries.
    pub jitter: f64,
}

/// A build's place in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Turn {
    /// It may start.
    Go,
    /// Its place, from 1, among so many.
    Wait {
        /// Place in the order that builds start in.
        place: usize,
        /// How many wait.
        of: usize,
    },
    /// It has not been lined up yet.
    #[default]
    None,
}

/// What an administrator may set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Time before the first retry; it doubles from one to the next.
    pub retry_first: SignedDuration,
    /// Longest time before a retry.
    pub retry_most: SignedDuration,
    /// How long after its pod's end a result may still be on its way into the status.
    pub result_grace: SignedDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry_first: SignedDuration::from_secs(10),
            retry_most: SignedDuration::from_mins(5),
            result_grace: SignedDuration::from_secs(20),
        }
    }
}

/// What to do, in this order; after each step that fails the rest is left to the next look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// First of all.
    pub actions: Vec<Action>,
    /// The operator's part of the status, when it is not what stands there.
    pub status: Option<ImageBuildStatus>,
    /// What to tell about, once the status is written.
    pub event: Option<Event>,
    /// The attempt that has ended with this.
    pub ended: Option<Attempt>,
    /// When to look again, if nothing happens before.
    pub again: Option<Timestamp>,
}

/// Something to do through the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Add [`FINALIZER`].
    Hold,
    /// Remove it.
    Release,
    /// Make the pod of this attempt, which stands in the status, unless it exists.
    CreatePod(i64),
    /// Delete a pod, and what was made with it.
    DeletePod {
        /// Its name.
        name: String,
        /// So that no other of this name is deleted.
        uid: String,
    },
    /// Remove these attempts from the status, whoever wrote to them.
    Forget(Vec<i64>),
    /// Delete the object.
    DeleteBuild,
}

/// Something to tell people about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether something is wrong.
    pub warning: bool,
    /// One word.
    pub reason: BuildReason,
    /// One line.
    pub note: String,
}
