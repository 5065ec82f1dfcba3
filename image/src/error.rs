//! The room's one error type: what was tried, on what, and why it failed, in one line.

use std::io;
use std::path::{Path, PathBuf};

/// Anything that can go wrong between a reference and a published image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The verb, such as `open`.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process kept a lock longer than we wait.
    #[error("{what}: another process has held the lock for {seconds} s")]
    Locked {
        /// What the lock guards.
        what: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The store's own state cannot be read. Nothing was changed.
    #[error("the image store is damaged: {}: {why}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// No image of that name.
    #[error("{0}: no such image in the local store")]
    NoSuchImage(String),
    /// A short id that fits more than one image.
    #[error("{text}: fits more than one image: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The names or platforms it could mean.
        candidates: Vec<String>,
    },
    /// The image or archive is not what it says, or is of a kind that cannot run here.
    #[error("{subject}: {why}")]
    Invalid {
        /// The file, blob or entry.
        subject: String,
        /// One line.
        why: String,
    },
    /// Something is larger than allowed.
    #[error("{subject}: {got} {unit} is more than the limit of {limit}")]
    Limit {
        /// The file, blob or entry.
        subject: String,
        /// Size found.
        got: u64,
        /// Size allowed.
        limit: u64,
        /// `bytes`, `layers`, …
        unit: &'static str,
    },
    /// The bytes do not have the digest they were asked by.
    #[error("{subject}: digest is {got}, expected {expected}")]
    Digest {
        /// The blob.
        subject: String,
        /// Digest of what arrived.
        got: cloister_layer::digest::Digest,
        /// Digest asked for.
        expected: cloister_layer::digest::Digest,
    },
    /// A layer could not be converted.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Digest of the layer blob, or its name in the archive.
        layer: String,
        /// Why.
        #[source]
        source: cloister_layer::error::Error,
    },
    /// A merged view of the image could not be made.
    #[error("{subject}: {why}")]
    View {
        /// The image.
        subject: String,
        /// Why.
        why: String,
    },
    /// A registry refused, or could not be reached.
    #[error("registry {registry}: {what}: {why}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// Status or network error.
        why: String,
        /// HTTP's status, if there was an answer.
        status: Option<u16>,
    },
    /// A text is not a reference.
    #[error(transparent)]
    Reference(#[from] crate::reference::ReferenceError),
}

/// The room's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The status a registry answered with.
    pub fn status(&self) -> Option<u16> {
        if let Self::Registry { status, .. } = self { *status } else { None }
    }

    pub(crate) fn answered(mut self, answer: u16) -> Self {
        if let Self::Registry { status, .. } = &mut self {
            *status = Some(answer);
        }
        self
    }

    pub(crate) fn invalid(subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { subject: one_line(subject.into()), why: one_line(why.into()) }
    }
}

/// Texts from an image may be megabytes with line breaks; a message is neither.
fn one_line(text: String) -> String {
    const MAX: usize = 400;
    if text.len() <= MAX && !text.contains(char::is_control) {
        return text;
    }
    text.chars().take(MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Adds the verb and the path to a system error.
pub(crate) trait IoContext<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { what, path: path.to_owned(), source })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::Io { what, path: path.to_owned(), source: errno.into() })
    }
}
