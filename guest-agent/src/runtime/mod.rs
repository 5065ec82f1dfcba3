//! The helper: a short-lived re-execution of this binary that makes one container process.
//!
//! The agent has threads and is PID 1, so forking, entering namespaces and changing identity happen in a process of
//! their own. The helper ends as soon as the container process exists; PID 1 adopts that process. Both talk over a
//! SOCK_SEQPACKET pair whose far end the container process keeps until its `execve(2)` succeeds: the end of the channel
//! says "runs", anything on it says why not.

mod caps;
mod channel;
mod create;
mod join;
mod pids;
mod program;

use std::process::ExitCode;

pub use channel::{Helper, Report, receive};
pub use create::{STATE, TERMINAL};
pub use join::{Request as JoinRequest, open as open_process};

use crate::error::{Error, Result};

/// Which of the helper's jobs.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// Makes a container from a bundle, up to the point where its init process waits to be started.
    Create,
    /// Starts a process in a container, as a request file says.
    Join,
    /// Makes a PID namespace and its first process.
    Pids,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Join => "join",
            Self::Pids => "pids",
        }
    }
}

/// `runtime JOB FD PATH`, as [`Helper::spawn`] starts it.
pub fn main(args: &[String]) -> ExitCode {
    let Some(channel) = args.get(1).and_then(|fd| fd.parse().ok()).and_then(channel::adopt) else {
        return ExitCode::FAILURE;
    };
    let result = reset().and_then(|()| match (args.first().map(String::as_str), args.get(2)) {
        (Some("create"), Some(path)) => create::run(&channel, path.as_ref()),
        (Some("join"), Some(path)) => join::run(&channel, path.as_ref()),
        (Some("pids"), Some(path)) => pids::run(&channel, path.as_ref()),
        _ => Err(Error::invalid("unknown job")),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            channel::report(&channel, &Report::Failed { kind: error.kind, message: error.message }, None);
            ExitCode::FAILURE
        }
    }
}

/// Gives up what the agent has and a container must not inherit.
fn reset() -> Result<()> {
    use crate::error::Context;
    std::panic::set_hook(Box::new(|_| {}));
    std::fs::write("/proc/self/oom_score_adj", "0").context(|| "reset oom_score_adj".into())?;
    rustix::process::setpriority_process(None, 0).context(|| "reset the priority".into())?;
    let files = rustix::process::Rlimit { current: Some(1024), maximum: Some(524_288) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)
        .context(|| "reset RLIMIT_NOFILE".into())
}
