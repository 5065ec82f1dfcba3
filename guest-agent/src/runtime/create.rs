//! Making a container with libcontainer.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use super::channel::{Report, report};
use super::program;
use crate::error::{Context, Error, Result};

/// The id libcontainer knows a container by, which is only the name of its state folder; the agent's folders have
/// numbers.
pub const STATE: &str = "state";

/// The socket in the container's folder that takes the terminal.
pub const TERMINAL: &str = "terminal.sock";

/// Makes the container whose bundle is `folder`, and reports its process.
pub fn run(channel: &OwnedFd, folder: &Path) -> Result<()> {
    let own = channel.as_fd().try_clone_to_owned().context(|| "keep the channel".into())?;
    let socket = folder.join(TERMINAL);
    let container = ContainerBuilder::new(STATE.into(), SyscallType::Linux)
        .with_root_path(folder)
        .map_err(describe)?
        .with_console_socket(socket.exists().then_some(socket))
        .with_executor(Workload { channel: Rc::new(own) })
        .as_init(folder)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(describe)?;
    let pid = container.pid().ok_or_else(|| Error::state("the container has no process"))?;
    report(channel, &Report::Pid(pid.as_raw().unsigned_abs()), None);
    Ok(())
}

/// All causes of an error in one line.
fn describe(error: impl std::error::Error) -> Error {
    let mut line = format!("create the container: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    Error::new(crate::error::Kind::Internal, line.replace('\n', " "))
}

/// The last steps of the container's init process, in its namespaces and as its user.
#[derive(Clone)]
struct Workload {
    channel: Rc<OwnedFd>,
}

impl Workload {
    fn failed(&self, error: Error) -> String {
        let message = error.message.clone();
        report(&self.channel, &Report::Failed { kind: error.kind, message: error.message }, None);
        message
    }
}

impl Executor for Workload {
    /// Before the container counts as created: is there a program at all?
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref().ok_or(ExecutorValidationError::CantHandle("cloister"))?;
        program::find(process)
            .map(drop)
            .map_err(|error| ExecutorValidationError::ArgValidationError(self.failed(error)))
    }

    /// The environment goes to `execve(2)` as the spec has it, in its order; this process's own is empty.
    fn setup_envs(&self, _: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        Err(ExecutorError::Other(self.failed(program::execute(process))))
    }
}
