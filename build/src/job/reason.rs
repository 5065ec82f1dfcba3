//! Why a build did not succeed, in one word for programs.

use std::io::ErrorKind;

use crate::client::Error;
use crate::network;
use crate::output::OutputError;

/// What BuildKit says of an image it can't get.
const IMAGE: [&str; 2] = ["failed to resolve source metadata", "failed to load cache key"];

/// What BuildKit says of a Dockerfile it can't use.
const DOCKERFILE: [&str; 8] = [
    "dockerfile parse error",
    "failed to read dockerfile",
    "the dockerfile cannot be empty",
    "target stage",
    "unknown instruction",
    "circular dependency",
    "failed to parse stage",
    "failed to process \"",
];

/// Why a build did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A process was killed because memory ran out.
    OutOfMemory,
    /// The disk of buildkitd's state, or one that a step wrote to, is full.
    DiskFull,
    /// A step wanted a network, and there is none.
    NoNetwork,
    /// An image it begins from can't be had.
    BaseImage,
    /// The Dockerfile can't be used.
    Dockerfile,
    /// A step's command failed.
    Step,
    /// It was given up.
    Canceled,
    /// It took too long.
    Deadline,
    /// The machine, its disk, buildkitd or the connection to it failed.
    Lost,
    /// The output is not what it should be, or could not be written.
    Output,
    /// The output has more bytes than are taken.
    TooLarge,
    /// The disk that the output goes to is full.
    NoRoom,
    /// Something else that the same input does again.
    Failed,
}

impl Reason {
    /// The reason of `error`. Of memory its words do not always tell: the caller says whether the kernel killed a process.
    pub fn of(error: &Error, killed: bool) -> Self {
        match error {
            Error::Canceled => return Self::Canceled,
            Error::Timeout(_) => return Self::Deadline,
            _ if killed => return Self::OutOfMemory,
            Error::OutOfMemory(_) => return Self::OutOfMemory,
            Error::Output(OutputError::TooLarge(_)) => return Self::TooLarge,
            Error::Output(OutputError::Write(_, cause)) if cause.kind() == ErrorKind::StorageFull => {
                return Self::NoRoom;
            }
            Error::Output(_) => return Self::Output,
            _ => {}
        }
        let mut words = error.to_string();
        if let Some(failure) = error.failure() {
            // Without the command, which can have any words in it.
            words = failure.reason().to_owned();
            for more in &failure.log_tail {
                words.push('\n');
                words.push_str(more);
            }
        }
        let words = words.to_ascii_lowercase();
        let any = |list: &[&str]| list.iter().any(|one| words.contains(one));
        let step = error.failure().is_some_and(|failure| failure.exit_code.is_some());
        let offline = error.failure().is_some_and(|failure| {
            network::stopped(&failure.log_tail, failure.exit_code) || network::tried(failure.reason())
        });
        match error {
            Error::Lost(_) | Error::Refused { retryable: true, .. } => Self::Lost,
            _ if words.contains("no space left on device") => Self::DiskFull,
            // Of the disk under buildkitd: another attempt gets another one.
            _ if !step && words.contains("input/output error") => Self::Lost,
            Error::Answer(_) => Self::Output,
            _ if !step && any(&IMAGE) => Self::BaseImage,
            _ if offline => Self::NoNetwork,
            _ if step => Self::Step,
            _ if any(&DOCKERFILE) => Self::Dockerfile,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Failure;

    fn failed(message: &str, exit_code: Option<u32>, tail: &[&str]) -> Error {
        let log_tail = tail.iter().map(|&line| line.to_owned()).collect();
        let failure = Failure { message: message.to_owned(), exit_code, log_tail, ..Failure::default() };
        Error::Failed(Box::new(failure))
    }

    #[test]
    fn each_failure_has_its_word() {
        let lookup = "debian: failed to resolve source metadata for docker.io/library/debian:latest: dial tcp: no such host";
        let table = [
            (failed("x: exit code: 3", Some(3), &["so far"]), Reason::Step),
            (failed("x: exit code: 1", Some(1), &["wget: bad address 'a.example'"]), Reason::NoNetwork),
            (failed("x: exit code: 1", Some(1), &["npm error Could not resolve dependency:"]), Reason::Step),
            (
                failed(
                    "process \"echo no such host\" did not complete successfully: exit code: 1",
                    Some(1),
                    &[],
                ),
                Reason::Step,
            ),
            (failed("x: exit code: 1", Some(1), &["dd: No space left on device"]), Reason::DiskFull),
            (failed("mkdir /x: no space left on device", None, &[]), Reason::DiskFull),
            (failed("failed to commit x during finalize: input/output error", None, &[]), Reason::Lost),
            (failed("x: exit code: 5", Some(5), &["mount: Input/output error"]), Reason::Step),
            (failed(lookup, None, &[]), Reason::BaseImage),
            (
                failed("dockerfile parse error on line 2: unknown instruction: RUM", None, &[]),
                Reason::Dockerfile,
            ),
            (failed("target stage \"x\" could not be found", None, &[]), Reason::Dockerfile),
            (failed("failed to compute cache key: \"/a\": not found", None, &[]), Reason::Failed),
            (Error::OutOfMemory(Box::default()), Reason::OutOfMemory),
            (Error::Canceled, Reason::Canceled),
            (Error::Timeout(Duration::ZERO), Reason::Deadline),
            (Error::Lost("no space left on device".to_owned()), Reason::Lost),
            (Error::Answer("odd".to_owned()), Reason::Output),
            (OutputError::Stalled.into(), Reason::Output),
            (OutputError::TooLarge(9).into(), Reason::TooLarge),
            (OutputError::Write("stream".into(), ErrorKind::StorageFull.into()).into(), Reason::NoRoom),
            (OutputError::Write("stream".into(), ErrorKind::Other.into()).into(), Reason::Output),
        ];
        for (error, expected) in table {
            assert_eq!(Reason::of(&error, false), expected, "{error}");
        }
        assert_eq!(Reason::of(&failed("x: exit code: 2", Some(2), &[]), true), Reason::OutOfMemory);
        assert_eq!(Reason::of(&Error::Canceled, true), Reason::Canceled);
    }
}
