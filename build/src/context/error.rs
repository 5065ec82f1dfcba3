//! Why a context can't be offered or sent.

use std::io;

use super::{MAX_DEPTH, MAX_ENTRIES, PatternError};

/// A context that can't be offered to a build, or not be sent to it.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The folder can't be opened.
    #[error("opening the context {0}: {1}")]
    Open(String, io::Error),
    /// A name for bytes that can't be one.
    #[error("{0:?} can't be a file's name in a context: {1}")]
    Name(String, &'static str),
    /// A file or folder can't be read.
    #[error("reading {0:?} of the context: {1}")]
    Read(String, io::Error),
    /// A name or a link's target is not UTF-8, which is all that BuildKit's protocol carries.
    #[error("the name or target of \"{0}\" in the context is not UTF-8")]
    NotUtf8(String),
    /// More folders within each other than [`MAX_DEPTH`].
    #[error("{0:?} of the context is more than {MAX_DEPTH} folders deep")]
    TooDeep(String),
    /// More than [`MAX_ENTRIES`].
    #[error("the context has more than {MAX_ENTRIES} files and folders: leave some out by a .dockerignore")]
    TooMany,
    /// What was announced is not there any more as it was.
    #[error("{0:?} of the context was changed or removed while it was being sent")]
    Changed(String),
    /// A pattern of the build.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Its archive can't be written.
    #[error("writing the archive of the context: {0}")]
    Archive(io::Error),
    /// Links that lead to links without an end.
    #[error("{0:?} of the context stands for too many links")]
    Links(String),
}

/// A name for messages, whatever its bytes.
pub(crate) fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}
