//! The one error type of the agent: what a host is told, and as which gRPC status.

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a host acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The request itself is wrong.
    Invalid,
    /// The program to run (exit code 127 for docker), or the file to copy, does not exist.
    NotFound,
    /// The program to run cannot be executed (exit code 126 for docker), or is not permitted here.
    Denied,
    /// The named thing exists already.
    Exists,
    /// The container or process is not in the state this needs, or there is none of that name.
    State,
    /// A limit of the agent.
    Exhausted,
    /// A deadline passed.
    Timeout,
    /// Anything else.
    Internal,
}

/// An error, in one line: what was tried, on what, why it failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// How a host should see it.
    pub kind: Kind,
    /// The line.
    pub message: String,
}

/// Results of the agent.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Not in the right state, or unknown.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(Kind::State, message)
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::Invalid => tonic::Code::InvalidArgument,
            Kind::NotFound => tonic::Code::NotFound,
            Kind::Denied => tonic::Code::PermissionDenied,
            Kind::Exists => tonic::Code::AlreadyExists,
            Kind::State => tonic::Code::FailedPrecondition,
            Kind::Exhausted => tonic::Code::ResourceExhausted,
            Kind::Timeout => tonic::Code::DeadlineExceeded,
            Kind::Internal => tonic::Code::Internal,
        };
        Self::new(code, error.message)
    }
}

/// Says what was being done when a system call failed.
pub trait Context<T> {
    /// Turns the failure into an internal [`Error`] that begins with `what`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(Kind::Internal, format!("{}: {e}", what())))
    }
}

/// Locks; a poisoned lock is taken too, because a panic ends the agent before anyone could see half-made state.
pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
