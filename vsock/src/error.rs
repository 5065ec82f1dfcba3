//! Errors of this crate.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("vsock device: {what} is {value}, allowed is {allowed}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// The hybrid socket could not be made.
    #[error("vsock device: listening on {path}: {source}", path = path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system refused something the device needs.
    #[error("vsock device: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a connection into the guest was not made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The guest runs and nothing in it listens on that port.
    #[error("vsock port {port}: connection refused by the guest")]
    Refused {
        /// The port dialled.
        port: u32,
    },
    /// The guest did not answer in time; it may not have started its driver.
    #[error("vsock port {port}: no answer from the guest within {after:?}")]
    Timeout {
        /// The port dialled.
        port: u32,
        /// How long it was given.
        after: Duration,
    },
    /// As many connections as allowed are open.
    #[error("vsock port {port}: all {limit} connections of this VM are in use")]
    TooManyConnections {
        /// The port dialled.
        port: u32,
        /// The limit.
        limit: usize,
    },
    /// The device is gone, usually because the VM has ended.
    #[error("vsock port {port}: the VM has ended")]
    Closed {
        /// The port dialled.
        port: u32,
    },
    /// The host refused something, as a rule file descriptors.
    #[error("vsock port {port}: {what}: {source}")]
    System {
        /// The port dialled.
        port: u32,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        let kind = match &error {
            DialError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            DialError::Timeout { .. } => io::ErrorKind::TimedOut,
            DialError::TooManyConnections { .. } => io::ErrorKind::QuotaExceeded,
            DialError::Closed { .. } => io::ErrorKind::NotConnected,
            DialError::System { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}
