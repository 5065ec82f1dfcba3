//! Errors of this crate: one line saying what was tried, on what, and why it failed.

use std::io;
use std::path::PathBuf;

/// Result of an operation on a pod's network.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a pod's network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path of a network namespace does not lead to one.
    #[error("cannot open network namespace {}: {source}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// The operating system's reason, or that it is something else.
        source: io::Error,
    },
    /// The pod asks for the network of the host.
    #[error(
        "network namespace {} is the host's: a microVM has a network of its own, run pods with hostNetwork under another runtime class",
        .0.display()
    )]
    HostNetwork(PathBuf),
    /// An interface that cannot be continued into a VM.
    #[error("interface {name} is {kind}: only Ethernet interfaces can be mirrored into a microVM")]
    Unsupported {
        /// Its name in the pod's namespace.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The kernel refused a change, or a query.
    #[error("cannot {what} {on}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The interface or table.
        on: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The thread that works in the namespace could not be started, or is gone.
    #[error("cannot work in a network namespace: {0}")]
    Thread(io::Error),
}

impl Error {
    pub(crate) fn kernel<E: Into<io::Error>>(
        what: &'static str,
        on: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        move |e| Self::Kernel { what, on: on.into(), source: e.into() }
    }
}
