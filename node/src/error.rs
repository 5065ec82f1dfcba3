//! The daemon's one error type and what containerd makes of it.

use std::io;
use std::path::{Path, PathBuf};

use tonic::Status;

/// What was tried, on what, and why it failed, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of that name.
    #[error("{0}: not found")]
    NotFound(String),
    /// The name is taken, or the layer is there already.
    #[error("{0}: already exists")]
    Exists(String),
    /// The call makes no sense in the present state.
    #[error("{0}")]
    Precondition(String),
    /// The call makes no sense at all.
    #[error("{0}")]
    Invalid(String),
    /// Another plugin may know how to do this.
    #[error("{0}")]
    NotOurs(String),
    /// containerd did not answer, or not with what was needed.
    #[error("containerd: {0}")]
    Containerd(String),
    /// Another node did not answer, or not with what was needed.
    #[error("node {0}")]
    Peer(String),
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
    /// The image store failed, or refused a layer.
    #[error(transparent)]
    Image(#[from] cloister_image::Error),
    /// A layer file cannot be read.
    #[error(transparent)]
    View(#[from] cloister_view::Error),
    /// A bug: a worker thread panicked.
    #[error("a worker of the daemon died; see its log")]
    Died,
}

/// The daemon's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for Status {
    /// containerd turns these codes back into its own kinds of error (`errdefs`) and acts on them.
    fn from(error: Error) -> Self {
        use cloister_image::Error as Image;
        let text = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(text),
            Error::Exists(_) => Self::already_exists(text),
            Error::Precondition(_) => Self::failed_precondition(text),
            Error::Invalid(_) | Error::Image(Image::Layer { .. } | Image::Limit { .. }) => {
                Self::invalid_argument(text)
            }
            Error::NotOurs(_) => Self::unimplemented(text),
            Error::Containerd(_) | Error::Peer(_) => Self::unavailable(text),
            Error::Io { .. } | Error::Image(_) | Error::View(_) | Error::Died => Self::internal(text),
        }
    }
}

/// Adds the verb and the path to a system error.
pub trait IoContext<T> {
    /// `what` is a verb, such as `open`.
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
