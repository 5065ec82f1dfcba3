//! What can go wrong between a host and a sandbox, one line each.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a guest's own words that are repeated to a user.
const GUEST_TEXT: usize = 512;

/// A failure of a sandbox operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image and the caller together name no program.
    #[error(
        "no command specified: the image has neither entrypoint nor command, so name one after the image"
    )]
    NoCommand,
    /// A working folder that is not absolute.
    #[error("the working folder {0:?} is not an absolute path")]
    WorkingDir(String),
    /// A value does not fit an OCI runtime specification.
    #[error("cannot write the container's specification: {0}")]
    Spec(#[source] oci_spec::OciSpecError),
    /// The virtual machine could not be started or changed.
    #[error("the virtual machine: {0}")]
    Vmm(#[from] cloister_vmm::Error),
    /// The virtual machine ended while something still needed it.
    #[error("the virtual machine ended: {0}")]
    Ended(String),
    /// The guest's agent did not come up.
    #[error("{cause}; the guest's console ends with: {}", if .console.is_empty() { "nothing" } else { .console })]
    Boot {
        /// What happened.
        cause: Box<Error>,
        /// The last the guest printed, on one line and printable.
        console: String,
    },
    /// Nothing answered on the guest's vsock port in time.
    #[error("the guest agent did not answer on vsock port {port} within {} ms: {cause}", .after.as_millis())]
    Dial {
        /// The port.
        port: u32,
        /// How long it was tried.
        after: Duration,
        /// The last failure.
        cause: String,
    },
    /// No server in the guest takes connections there.
    #[error("nothing in the guest listens on {0}")]
    Refused(String),
    /// The agent is of another release.
    #[error("the guest agent: {0}")]
    Version(#[from] cloister_protocol::version::VersionError),
    /// A raw stream could not be opened.
    #[error("{0}")]
    Handshake(#[from] cloister_protocol::stream::HandshakeError),
    /// The agent refused or failed a call.
    #[error("{call}: {message}")]
    Call {
        /// The call, as a user would name it.
        call: &'static str,
        /// The kind of failure.
        code: tonic::Code,
        /// The guest's words, made safe to print.
        message: String,
    },
    /// The agent did not finish a call in time.
    #[error("{call}: the guest agent did not answer within {} s", .after.as_secs_f32())]
    Deadline {
        /// The call, as a user would name it.
        call: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// The agent answered something no agent may answer.
    #[error("{call}: the guest agent's answer is not valid: {why}")]
    Reply {
        /// The call, as a user would name it.
        call: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More layers than one disk can carry.
    #[error("the image has {0} layers; a virtual machine can mount {max}", max = cloister_protocol::limits::LAYERS)]
    Layers(usize),
    /// A disk could not be put together or made.
    #[error("cannot prepare a disk: {0}")]
    Disk(#[source] cloister_view::Error),
    /// A file of the image or of the sandbox could not be used.
    #[error("cannot {what} {}: {cause}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// A system call failed.
    #[error("cannot {what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
}

impl Error {
    /// A failed call, with the guest's message bounded and stripped of what could drive a terminal.
    pub(crate) fn call(call: &'static str, status: &tonic::Status) -> Self {
        let mut message = printable(status.message());
        if message.is_empty() {
            message = format!("{:?}", status.code());
        }
        Self::Call { call, code: status.code(), message }
    }

    /// Whether the guest says that the request makes no sense to it, or something stands in its way.
    pub fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Call { code: tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition, .. }
        )
    }

    /// Whether the guest says that the program does not exist (exit code 127 of a shell).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { code: tonic::Code::NotFound, .. })
    }

    /// Whether the guest says that the program can't be executed (exit code 126 of a shell).
    pub fn is_not_executable(&self) -> bool {
        matches!(self, Self::Call { code: tonic::Code::PermissionDenied, .. })
    }
}

/// Text from a guest without control characters and of bounded length.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= GUEST_TEXT {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\t' => out.push(' '),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_drive_the_terminal_with_its_messages() {
        let shown = printable("bad\x1b[2J\r\nline");
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(printable(&"x".repeat(100_000)).len() < 600);
    }
}
