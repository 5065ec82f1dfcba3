//! One error type for the whole room.

use std::io;

/// Why reading, merging or writing a file system failed. Each message is one line and names the file and the
/// entry it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read or a write.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on which file.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// An EROFS file contradicts itself or points outside itself.
    #[error("{file}: {place}: {why}")]
    Corrupt {
        /// The file, as named by the caller.
        file: String,
        /// "superblock" or "inode N".
        place: String,
        /// The contradiction.
        why: String,
    },
    /// An EROFS file uses a feature this reader does not know (compression, more devices, metadata boxes).
    #[error("{file}: {place}: {what} is not supported")]
    Unsupported {
        /// The file, as named by the caller.
        file: String,
        /// "superblock" or "inode N".
        place: String,
        /// The feature.
        what: String,
    },
    /// The tree holds something the target format cannot express.
    #[error("cannot write {path:?} as {format}: {why}")]
    Unrepresentable {
        /// Path inside the tree, lossily decoded.
        path: String,
        /// The target format.
        format: &'static str,
        /// What does not fit.
        why: String,
    },
    /// The layer room's EROFS writer failed.
    #[error(transparent)]
    Layer(#[from] cloister_layer::Error),
    /// A requested size or count is outside what the format or the tree allows.
    #[error("{0}")]
    Invalid(String),
}

/// Shorthand of this room.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps a system error, `what` being the attempted action and its object.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// A path the target format cannot hold.
    pub(crate) fn unrepresentable(path: &[u8], format: &'static str, why: impl Into<String>) -> Self {
        Self::Unrepresentable { path: String::from_utf8_lossy(path).into_owned(), format, why: why.into() }
    }
}
