//! The processes of containers: starting, following, signalling.

use std::sync::Arc;
use std::time::Duration;

use cloister_sandbox::Error;
use tracing::Instrument;

use super::{Machine, Pod};
use crate::failure::{Failure, Result};
use crate::metrics::Ending;
use crate::process::{Process, State};

/// How often a broken call for a process's end is made again before the machine counts as lost.
const RETRIES: u32 = 20;
/// How long the end of a machine takes to become the end of its processes.
const END: Duration = Duration::from_secs(1);
/// The pause between.
const RETRY: Duration = Duration::from_millis(50);

impl Pod {
    /// Starts a container's own process, or one that was announced.
    ///
    /// # Errors
    /// When it can't run; [`Failure`] says why in the words of the guest.
    pub async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if process.state() != State::Created {
            return Err(Failure::Precondition(format!("process {exec} of {id} was started already")));
        }
        // Its end is not told before its start.
        let _order = process.order.lock().await;
        if container.is_sandbox() {
            if !exec.is_empty() {
                return Err(no_process());
            }
            self.machine().await?;
            process.started();
            self.events.started(id, self.pid());
        } else if exec.is_empty() {
            let machine = self.present()?;
            machine.sandbox.start(id).await.map_err(|error| cannot_run("create", &error))?;
            process.started();
            self.events.started(id, self.pid());
        } else {
            if container.init.state() != State::Running {
                return Err(Failure::Precondition(format!("container {id} does not run")));
            }
            let machine = self.present()?;
            let io = process.open()?;
            let agent = machine.sandbox.agent();
            let spec = process.spec.clone();
            let started = cloister_sandbox::Process::exec(agent, id, &process.guest, spec, "", io);
            let started = match machine.sandbox.while_alive(started).await {
                Ok(started) => started,
                Err(error) => {
                    process.close();
                    return Err(cannot_run("exec", &error));
                }
            };
            process.started();
            self.events.exec_started(id, exec, self.pid());
            let follow = Arc::clone(self).follow(machine, Arc::clone(&process), started);
            tokio::spawn(follow.in_current_span());
        }
        Ok(self.pid())
    }

    /// Stays with a process until it has ended and its output has arrived.
    pub(super) async fn follow(
        self: Arc<Self>,
        machine: Arc<Machine>,
        process: Arc<Process>,
        guest: cloister_sandbox::Process,
    ) {
        let mut broken = 0;
        let exit = loop {
            let waited = tokio::select! {
                waited = guest.wait() => waited,
                // Told to everyone by who noticed.
                _ = self.gone() => break None,
            };
            match waited {
                Ok(exit) => break Some(exit),
                // The agent forgot it: its container was deleted.
                Err(error) if error.is_not_found() => break None,
                Err(error) if broken < RETRIES => {
                    broken += 1;
                    tracing::debug!(%error, "asking for a process's end again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    machine.sandbox.kill().await;
                    self.lost(&format!("the connection to the guest agent broke: {error}")).await;
                    break None;
                }
            }
        };
        if let Some(exit) = exit {
            let _order = process.order.lock().await;
            if exit.oom_killed {
                self.events.out_of_memory(&process.container);
            }
            let ending = match exit.code {
                _ if exit.oom_killed => Ending::OutOfMemory,
                0 => Ending::Completed,
                _ => Ending::Error,
            };
            self.ended(&process, exit.code.into(), ending, None);
        }
        process.close();
        guest.drain().await;
    }

    /// Sends a signal to one process, or to all of a container.
    ///
    /// # Errors
    /// When the process has ended already, or the guest refuses.
    pub async fn signal(self: &Arc<Self>, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if process.end().is_some() {
            return finished(&process).await;
        }
        let number = i32::try_from(signal).map_err(|_| Failure::Invalid(format!("signal {signal}")))?;
        if container.is_sandbox() {
            if matches!(number, libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP) {
                self.stop().await;
            }
            return Ok(());
        }
        if !exec.is_empty() && process.state() == State::Created {
            return Err(Failure::Precondition(format!("process {exec} of {id} does not run")));
        }
        let Ok(machine) = self.present() else { return finished(&process).await };
        match machine
            .sandbox
            .while_alive(machine.sandbox.agent().signal(id, &process.guest, number, all))
            .await
        {
            Ok(()) => Ok(()),
            // The machine may be on its way out, which is the best of ends for who wants to kill something.
            Err(error) => match finished(&process).await {
                Err(Failure::NotFound(text)) => Err(Failure::NotFound(text)),
                _ => Err(error.into()),
            },
        }
    }

    /// Sets the size of a terminal, in rows and columns.
    ///
    /// # Errors
    /// When the guest refuses.
    pub async fn resize_terminal(&self, id: &str, exec: &str, size: (u16, u16)) -> Result<()> {
        let process = self.container(id)?.process(exec)?;
        if process.resized(size) && !exec.is_empty() {
            return Ok(());
        }
        let machine = self.present()?;
        machine.sandbox.agent().resize(id, &process.guest, size.0, size.1).await?;
        Ok(())
    }

    /// Freezes a container, or lets it go on.
    ///
    /// # Errors
    /// When the guest refuses.
    pub async fn pause(&self, id: &str, paused: bool) -> Result<()> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Err(Failure::Unimplemented(
                "a pod's sandbox has no process that could be paused".to_owned(),
            ));
        }
        self.present()?.sandbox.agent().pause_container(id, paused).await?;
        container.set_paused(paused);
        self.events.paused(id, paused);
        Ok(())
    }

    /// Process ids of a container in the guest.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        if self.container(id)?.is_sandbox() {
            return Ok(vec![self.pid()]);
        }
        let all = self.present()?.sandbox.agent().list().await?;
        Ok(all
            .into_iter()
            .filter(|process| process.container == id && process.running)
            .map(|p| p.pid)
            .collect())
    }

    /// Announces one more process of a running container.
    ///
    /// # Errors
    /// When the container does not run, or has a process of this name.
    pub fn exec(&self, id: &str, exec: &str, names: crate::io::Names, spec: Vec<u8>) -> Result<()> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Err(no_process());
        }
        container.add_exec(exec, names, spec)?;
        self.events.exec_added(id, exec);
        Ok(())
    }
}

/// What to answer about a process that ends by itself at just this moment.
async fn finished(process: &Process) -> Result<()> {
    match tokio::time::timeout(END, process.wait()).await {
        Ok(_) => Err(Failure::NotFound("process already finished: not found".to_owned())),
        Err(_) => {
            Err(Failure::Other(format!("process {} of {} can't be reached", process.exec, process.container)))
        }
    }
}

fn no_process() -> Failure {
    Failure::Precondition(
        "a pod's sandbox runs no process in its microVM: use one of its containers".to_owned(),
    )
}

/// In the words that users of other runtimes know.
fn cannot_run(action: &str, error: &Error) -> Failure {
    let text = error.to_string();
    let text = if error.is_not_found() && !text.contains("no such file or directory") {
        format!("{text}: no such file or directory")
    } else {
        text
    };
    Failure::Other(format!("OCI runtime {action} failed: unable to start container process: {text}"))
}
