//! What can go wrong with a build, by who has to act.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use super::failure::Failure;
use crate::progress::printable;

/// Longest reason taken over from buildkitd, in bytes.
const MAX_REASON: usize = 4096;

/// The result of a call to buildkitd.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call or a build did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The build itself failed: the same input fails again.
    #[error("build failed: {0}")]
    Failed(Box<Failure>),
    /// A step was killed because memory ran out.
    #[error("build ran out of memory: {0}")]
    OutOfMemory(Box<Failure>),
    /// The caller gave the build up.
    #[error("build canceled")]
    Canceled,
    /// The build took longer than its deadline.
    #[error("build not done after {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection to buildkitd ended, or nothing comes over it any more.
    #[error("connection to buildkitd lost: {0}")]
    Lost(String),
    /// buildkitd refused a call.
    #[error("buildkitd: {what}: {why}")]
    Refused {
        /// What it was asked to do.
        what: &'static str,
        /// What it said.
        why: String,
        /// Whether a later call may succeed.
        retryable: bool,
    },
    /// An answer that no buildkitd gives.
    #[error("buildkitd answered wrongly: {0}")]
    Answer(String),
    /// A wish that can't be sent.
    #[error("{what}: {why}")]
    Invalid {
        /// The wish.
        what: String,
        /// Why not.
        why: String,
    },
    /// What was built did not arrive whole.
    #[error(transparent)]
    Output(#[from] crate::output::OutputError),
    /// A file on our side.
    #[error("{what}: {source}")]
    Io {
        /// What was done with which file.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The node-local image store.
    #[error(transparent)]
    Image(#[from] cloister_image::Error),
}

impl Error {
    /// Whether the same build may succeed when it is tried again unchanged.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Refused { retryable: true, .. })
    }

    /// The failed step, when a step failed.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::OutOfMemory(failure) => Some(failure),
            _ => None,
        }
    }

    pub(super) fn refused(what: &'static str, status: &Status) -> Self {
        let retryable = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted);
        Self::Refused { what, why: printable(status.message(), MAX_REASON), retryable }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), why: why.to_string() }
    }

    pub(super) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// What buildkitd says went wrong, on one bounded line.
pub(super) fn reason(text: &str) -> String {
    printable(text, MAX_REASON)
}
