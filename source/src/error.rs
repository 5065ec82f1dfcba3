//! Why a source can't be had.

use cloister_crds::BuildReason;

/// What was tried, on what, why it failed, and what to do, in one line. Never a credential.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: BuildReason,
    message: String,
}

/// The room's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Most characters of a message: texts of servers and archives may be long.
const MAX_MESSAGE: usize = 600;

impl Error {
    pub(crate) fn new(reason: BuildReason, message: impl AsRef<str>) -> Self {
        let message = message.as_ref().chars().take(MAX_MESSAGE);
        Self { reason, message: message.map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect() }
    }

    /// The source is not what can be built from.
    pub(crate) fn invalid(message: impl AsRef<str>) -> Self {
        Self::new(BuildReason::SourceInvalid, message)
    }

    /// There is no such thing.
    pub(crate) fn missing(message: impl AsRef<str>) -> Self {
        Self::new(BuildReason::SourceNotFound, message)
    }

    /// It may be there later.
    pub(crate) fn unavailable(message: impl AsRef<str>) -> Self {
        Self::new(BuildReason::SourceUnavailable, message)
    }

    /// The reason for the object's status; [`BuildReason::is_retried`] tells whether another attempt can help.
    pub fn reason(&self) -> BuildReason {
        self.reason
    }
}
