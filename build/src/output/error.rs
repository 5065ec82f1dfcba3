//! Why an output was not taken.

use std::io;

use super::tree::STALL;

/// An output that can't be received.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The build ended without sending it, or while it sent it.
    #[error("the build ended before its output was there")]
    Missing,
    /// Nothing may be lost where an output goes.
    #[error("{0} exists and is not an empty folder")]
    Exists(String),
    /// The machine's own trouble.
    #[error("writing the output {0}: {1}")]
    Write(String, io::Error),
    /// More bytes than the limit.
    #[error("the output has more than {0} bytes")]
    TooLarge(u64),
    /// More entries than the limit, or names of more bytes than are kept.
    #[error("the output has more than {0} files, folders and links, or too long names for them")]
    TooMany(u32),
    /// A file that is not taken from a build.
    #[error("the output has {0:?}: {1}")]
    Refused(String, &'static str),
    /// The builder does not keep to fsutil's protocol.
    #[error("the builder sent an output against the rules: {0}")]
    Protocol(&'static str),
    /// The builder's own reason.
    #[error("the builder could not send the output: {0}")]
    Sender(String),
    /// The builder sends nothing any more.
    #[error("the builder sent nothing of the output for {} s", STALL.as_secs())]
    Stalled,
}
