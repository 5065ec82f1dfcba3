//! What goes wrong in a call, in containerd's terms.

use containerd_shim::protos::ttrpc::{self, Code, get_status};

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// What the call names does not exist (any more).
    #[error("{0}")]
    NotFound(String),
    /// What the call would make exists.
    #[error("{0}")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// The request makes no sense here.
    #[error("{0}")]
    Invalid(String),
    /// Nothing here does that.
    #[error("{0}")]
    Unimplemented(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of the shim itself.
    pub fn other(error: impl std::fmt::Display) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<cloister_sandbox::Error> for Failure {
    fn from(error: cloister_sandbox::Error) -> Self {
        if error.is_invalid() { Self::Invalid(error.to_string()) } else { Self::Other(error.to_string()) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(format!("{error:#}"))
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::NotFound(_) => Code::NOT_FOUND,
            Failure::Exists(_) => Code::ALREADY_EXISTS,
            Failure::Precondition(_) => Code::FAILED_PRECONDITION,
            Failure::Invalid(_) => Code::INVALID_ARGUMENT,
            Failure::Unimplemented(_) => Code::UNIMPLEMENTED,
            Failure::Other(_) => Code::UNKNOWN,
        };
        Self::RpcStatus(get_status(code, failure.to_string()))
    }
}
