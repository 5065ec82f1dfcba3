//! A process in a guest together with its streams.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::agent::{Agent, Exit, Stdio};
use crate::dial::blocking;
use crate::error::Error;
use crate::pump::{Input, Output};

/// How long an ended process's streams may stay silent before they are cut: something else in the container may
/// hold them open for ever.
const QUIET: Duration = Duration::from_secs(2);

/// What a process's streams are connected to on the host; what is missing is `/dev/null` in the guest.
#[derive(Default)]
pub struct Io {
    /// Read until its end, which the process sees as the end of its input.
    pub stdin: Option<OwnedFd>,
    /// Receives standard output, or everything from the terminal.
    pub stdout: Option<Box<dyn Write + Send>>,
    /// Receives standard error; unused with a terminal.
    pub stderr: Option<Box<dyn Write + Send>>,
    /// Rows and columns of a terminal for the process; `None` for plain streams.
    pub terminal: Option<(u16, u16)>,
}

/// Streams that are open and not yet given to a process.
pub(crate) struct Attached {
    pub(crate) stdio: Stdio,
    input: Option<(std::os::unix::net::UnixStream, OwnedFd)>,
    outputs: Vec<Output>,
}

impl Attached {
    /// Opens the streams that `io` needs and begins to move output.
    pub(crate) async fn open(agent: &Agent, io: Io) -> Result<Self, Error> {
        let thread = |cause| Error::System { what: "start moving a process's streams", cause };
        let mut stdio = Stdio { terminal: io.terminal, ..Stdio::default() };
        let mut outputs = Vec::new();
        let mut input = None;
        if let Some(source) = io.stdin {
            let (id, connection) = agent.open_stream().await?;
            stdio.stdin = Some(id);
            input = Some((blocking(connection)?, source));
        }
        if let Some(sink) = io.stdout {
            let (id, connection) = agent.open_stream().await?;
            stdio.stdout = Some(id);
            outputs.push(Output::start(blocking(connection)?, sink).map_err(thread)?);
        }
        if let Some(sink) = io.stderr.filter(|_| io.terminal.is_none()) {
            let (id, connection) = agent.open_stream().await?;
            stdio.stderr = Some(id);
            outputs.push(Output::start(blocking(connection)?, sink).map_err(thread)?);
        }
        Ok(Self { stdio, input, outputs })
    }

    /// Hands the streams to a process that now runs.
    pub(crate) fn started(self, agent: Agent, container: String, exec: String) -> Result<Process, Error> {
        let input = match self.input {
            Some((stream, source)) => Some(
                Input::start(stream, source)
                    .map_err(|cause| Error::System { what: "start moving a process's input", cause })?,
            ),
            None => None,
        };
        Ok(Process { agent, container, exec, input, outputs: self.outputs })
    }
}

/// A running process of a container.
pub struct Process {
    agent: Agent,
    container: String,
    exec: String,
    input: Option<Input>,
    outputs: Vec<Output>,
}

impl Process {
    /// Starts one more process in a running container. `process` is an OCI runtime `process` object, `user` a
    /// docker-style user that the guest resolves, or empty.
    ///
    /// # Errors
    /// When streams can't be opened or the agent refuses.
    pub async fn exec(
        agent: &Agent,
        container: &str,
        exec: &str,
        process: Vec<u8>,
        user: &str,
        io: Io,
    ) -> Result<Self, Error> {
        let attached = Attached::open(agent, io).await?;
        agent.exec(container, exec, process, user, attached.stdio).await?;
        attached.started(agent.clone(), container.to_owned(), exec.to_owned())
    }

    /// A handle for signals and sizes that can be used while [`Process::wait`] runs.
    pub fn remote(&self) -> Remote {
        Remote { agent: self.agent.clone(), container: self.container.clone(), exec: self.exec.clone() }
    }

    /// Waits until the process has ended. Its output may still be on the way: [`Process::drain`] follows.
    ///
    /// # Errors
    /// When the connection to the guest breaks.
    pub async fn wait(&self) -> Result<Exit, Error> {
        self.agent.wait(&self.container, &self.exec).await
    }

    /// Moves what is left of the output, however slowly it is read, and ends the input.
    pub async fn drain(mut self) {
        self.input.take();
        for output in self.outputs.drain(..) {
            output.finish(QUIET).await;
        }
    }
}

/// Signals and sizes for one process.
#[derive(Clone)]
pub struct Remote {
    agent: Agent,
    container: String,
    exec: String,
}

impl Remote {
    /// Sends a signal.
    ///
    /// # Errors
    /// When the agent refuses or the connection breaks.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.agent.signal(&self.container, &self.exec, signal, false).await
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// When the agent refuses or the connection breaks.
    pub async fn signal_all(&self, signal: i32) -> Result<(), Error> {
        self.agent.signal(&self.container, "", signal, true).await
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// When the agent refuses or the connection breaks.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.agent.resize(&self.container, &self.exec, rows, columns).await
    }
}
