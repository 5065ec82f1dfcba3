//! Errors of this crate: one line saying what was tried, on what, and why it failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Exit;

/// Result of an operation on a VM.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a VM failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the host (kernel, firmware, log…) could not be used.
    #[error("cannot open {what} {}: {source}", path.display())]
    File {
        /// What the file is for, such as `guest kernel`.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A helper program could not be started.
    #[error("cannot start {what} ({}): {source}", path.display())]
    Spawn {
        /// Which program, such as `QEMU`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The installed QEMU is older than this crate supports.
    #[error("QEMU {found} is too old: {minimum} or newer is needed")]
    Version {
        /// The version QEMU reported.
        found: String,
        /// The oldest version supported.
        minimum: String,
    },
    /// The VM ended before or during the operation.
    #[error("{0}")]
    Exited(Exit),
    /// QEMU answered a command with an error.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The QMP command.
        command: String,
        /// QEMU's own description.
        reason: String,
    },
    /// Something did not happen within its time.
    #[error("{what} did not finish within {} ms", limit.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// QEMU or a helper answered with something that is not its protocol.
    #[error("QMP: {0}")]
    Protocol(String),
    /// Every pre-created hot-plug port carries a device.
    #[error("no free hot-plug port: all {0} carry a device")]
    NoPort(usize),
    /// No connection to a port of the guest.
    #[error("cannot reach port {port} of the guest: {source}")]
    Dial {
        /// The vsock port.
        port: u32,
        /// Refused, timed out, or the VM is gone.
        source: io::Error,
    },
    /// The caller asked for something impossible.
    #[error("{what}: {why}")]
    Invalid {
        /// The thing that was asked for.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what, source }
    }

    pub(crate) fn errno(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |e| Self::Os { what, source: e.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }
}
