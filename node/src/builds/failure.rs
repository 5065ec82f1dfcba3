//! Why an attempt failed, as its status says it.

use cloister_build::client::Error as Build;
use cloister_build::job::Reason;
use cloister_crds::{BuildReason, Failure};
use cloister_image::Error as Image;
use cloister_sandbox::printable;

use crate::error::Error;

/// Most bytes of a message and of a step's name, as the schema has it.
const MESSAGE: usize = 4096;
const STEP: usize = 1024;

/// Most bytes of a result, however large the build's disk is.
pub const RESULT: u64 = 64 << 30;

/// What is known of the machine when a build fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Whether the kernel killed a process for want of memory.
    pub killed: bool,
    /// Bytes there are.
    pub limit: u64,
    /// The most bytes that were in use.
    pub peak: u64,
}

/// A failure with this reason.
pub fn failure(reason: BuildReason, message: impl AsRef<str>) -> Failure {
    Failure { reason, message: cut(message.as_ref(), MESSAGE), ..Failure::default() }
}

/// A failure of the solve.
pub fn of_build(error: &Build, memory: Memory, disk: u64, network: bool) -> Failure {
    use BuildReason as R;
    let (reason, help) = match Reason::of(error, memory.killed) {
        Reason::OutOfMemory => {
            let (peak, limit) = (mebibytes(memory.peak), mebibytes(memory.limit));
            (
                R::OutOfMemory,
                format!("the build used {peak} of {limit}; raise spec.resources.limits.memory: "),
            )
        }
        Reason::DiskFull => {
            let disk = mebibytes(disk);
            (R::OutOfDisk, format!("the build's disk of {disk} is full; raise spec.cache.size: "))
        }
        Reason::NoNetwork if !network => (
            R::NetworkDisabled,
            "a step tried the network, which steps have only with spec.network: Egress (--network egress): "
                .to_owned(),
        ),
        Reason::BaseImage => (R::BaseImageNotFound, String::new()),
        Reason::Dockerfile => (R::DockerfileInvalid, String::new()),
        Reason::NoNetwork | Reason::Step | Reason::Failed => (R::StepFailed, String::new()),
        Reason::Canceled => (R::Cancelled, String::new()),
        Reason::Deadline => (R::DeadlineExceeded, String::new()),
        Reason::Lost => (R::BuilderLost, String::new()),
        Reason::Output => (R::DigestMismatch, String::new()),
        Reason::TooLarge => {
            let help = match disk < RESULT {
                true => format!("the build's disk is {}; raise spec.cache.size: ", mebibytes(disk)),
                false => format!("a node takes at most {}: ", mebibytes(RESULT)),
            };
            (R::ResultTooLarge, help)
        }
        Reason::NoRoom => {
            let help =
                "this node has no room for the result; free some below the `root` of node.toml, or move it: ";
            (R::ImportFailed, help.to_owned())
        }
    };
    let mut failure = failure(reason, format!("{help}{error}"));
    if let Some(known) = error.failure() {
        failure.step = known.step.as_deref().map(|step| cut(step, STEP));
        failure.exit_code =
            known.exit_code.and_then(|code| i32::try_from(code).ok()).filter(|code| *code < 256);
        failure.line = known.line.and_then(|line| i32::try_from(line).ok()).filter(|line| *line > 0);
    }
    failure.memory_peak_bytes = i64::try_from(memory.peak).ok().filter(|peak| *peak > 0);
    failure
}

/// A failure of the import.
pub fn of_import(error: &Error) -> Failure {
    let reason = match error {
        // The archive is a guest's.
        Error::Invalid(_) => BuildReason::DigestMismatch,
        Error::Exists(_) => BuildReason::InvalidSpec,
        _ => BuildReason::ImportFailed,
    };
    failure(reason, format!("import: {error}"))
}

/// The reason why an image could not be pulled.
pub fn of_pull(error: &Error) -> BuildReason {
    let Error::Image(error) = error else { return BuildReason::ImportFailed };
    match (error.status(), error) {
        (Some(401 | 403), _) => BuildReason::AccessDenied,
        (Some(404), _) => BuildReason::BaseImageNotFound,
        (_, Image::Registry { .. }) => BuildReason::RegistryUnavailable,
        (_, Image::Io { .. } | Image::Locked { .. } | Image::Damaged { .. }) => BuildReason::ImportFailed,
        // What is there is no image, not for this platform, or not what its digest says.
        _ => BuildReason::BaseImageNotFound,
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// `text` on one line of at most `max` bytes.
fn cut(text: &str, max: usize) -> String {
    let mut text = printable(text);
    text.truncate(text.floor_char_boundary(max));
    text
}

#[cfg(test)]
mod tests {
    use cloister_build::client::Failure as Step;
    use cloister_build::output::OutputError;

    use super::*;

    #[test]
    fn a_failed_step_is_told_with_its_code_and_line() {
        let step = Step {
            message: "did not complete successfully: exit code: 3".into(),
            step: Some("[2/2] RUN exit 3".into()),
            exit_code: Some(3),
            line: Some(2),
            ..Step::default()
        };
        let error = Build::Failed(Box::new(step));
        let told = of_build(&error, Memory::default(), 1 << 30, false);
        assert_eq!((told.reason, told.exit_code, told.line), (BuildReason::StepFailed, Some(3), Some(2)));
        let memory = Memory { killed: true, limit: 512 << 20, peak: 512 << 20 };
        let told = of_build(&error, memory, 1 << 30, false);
        assert_eq!((told.reason, told.memory_peak_bytes), (BuildReason::OutOfMemory, Some(512 << 20)));
        assert!(told.message.contains("512 MiB of 512 MiB"), "{}", told.message);
    }

    #[test]
    fn a_result_that_does_not_fit_says_which_knob_to_turn() {
        let too_large = |disk| of_build(&OutputError::TooLarge(disk).into(), Memory::default(), disk, false);
        let told = too_large(512 << 20);
        assert_eq!((told.reason, told.reason.is_retried()), (BuildReason::ResultTooLarge, false));
        assert!(told.message.contains("512 MiB; raise spec.cache.size"), "{}", told.message);
        assert!(too_large(RESULT).message.contains("at most 65536 MiB"));
        let full = OutputError::Write("stream".into(), std::io::ErrorKind::StorageFull.into());
        let told = of_build(&full.into(), Memory::default(), 1 << 30, false);
        assert_eq!((told.reason, told.reason.is_retried()), (BuildReason::ImportFailed, true));
        assert!(told.message.contains("`root` of node.toml"), "{}", told.message);
    }

    #[test]
    fn a_failed_pull_is_told_by_what_it_was() {
        let answer = |status| {
            let (registry, what, why) =
                ("r.test".to_owned(), "manifest of 404/401".to_owned(), "no".to_owned());
            of_pull(&Error::Image(Image::Registry { registry, what, why, status }))
        };
        assert_eq!(answer(Some(401)), BuildReason::AccessDenied);
        assert_eq!(answer(Some(403)), BuildReason::AccessDenied);
        assert_eq!(answer(Some(404)), BuildReason::BaseImageNotFound);
        assert_eq!(answer(Some(429)), BuildReason::RegistryUnavailable);
        assert_eq!(answer(None), BuildReason::RegistryUnavailable);
        let other = Image::Invalid { subject: "image x".to_owned(), why: "no image for arm64".to_owned() };
        assert_eq!(of_pull(&Error::Image(other)), BuildReason::BaseImageNotFound);
        assert_eq!(of_pull(&Error::Died), BuildReason::ImportFailed);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        let lost = of_build(&Build::Lost("gone".into()), Memory::default(), 0, false);
        assert!(lost.reason.is_retried());
        assert!(of_import(&Error::Containerd("away".into())).reason.is_retried());
        assert!(!of_import(&Error::Invalid("a lie".into())).reason.is_retried());
        assert!(failure(BuildReason::StepFailed, "x\n".repeat(9000)).message.len() <= MESSAGE);
    }
}
