//! How a supervisor's work ended.

use crate::vm::Status;

/// What a run came to.
pub struct Outcome {
    pub code: u8,
    pub reason: Option<String>,
    pub status: Status,
}

impl Outcome {
    pub fn failed(code: u8, reason: impl Into<String>) -> Self {
        Self { code, reason: Some(reason.into()), status: Status::Failed }
    }
}
