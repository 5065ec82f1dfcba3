//! The processes of containers: starting, following, signalling.

use std::sync::Arc;
use std::time::Duration;

use cloister_sandbox::{Error, Exit};
use tracing::Instrument;

use super::{Machine, Pod, Stage};
use crate::failure::{Failure, Result};
use crate::metrics::Ending;
use crate::process::{Process, State};

/// How often a broken call for a process's end is made again before the machine counts as lost.
const RETRIES: u32 = 20;
/// How long the end of a process takes to be known.
const END: Duration = Duration::from_secs(1);
/// How long a stop takes, from the moment the machine counts as gone to the end of its processes: the guest may write
/// to shared folders first.
const STOP: Duration = Duration::from_secs(15);
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
            self.events.started(id, self.pid_of(id));
        } else if exec.is_empty() {
            let machine = self.present()?;
            machine.sandbox.start(id).await.map_err(|error| cannot_run("create", &error))?;
            process.started();
            self.events.started(id, self.pid_of(id));
        } else {
            if container.init.state() != State::Running {
                return Err(Failure::Precondition(format!("container {id} does not run")));
            }
            let machine = self.present()?;
            let io = process.open().await?;
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
            self.events.exec_started(id, exec, self.pid_of(id));
            let follow = Arc::clone(self).follow(machine, Arc::clone(&process), started);
            tokio::spawn(follow.in_current_span());
        }
        Ok(self.pid_of(id))
    }

    /// Stays with a process until it has ended and its output has arrived.
    pub(super) async fn follow(
        self: Arc<Self>,
        machine: Arc<Machine>,
        process: Arc<Process>,
        guest: cloister_sandbox::Process,
    ) {
        let exit = self.exit_of(&machine, &guest).await;
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

    /// How a process of the guest ended; `None` when nobody can know any more, and everyone was told.
    pub(super) async fn exit_of(&self, machine: &Machine, guest: &cloister_sandbox::Process) -> Option<Exit> {
        let mut broken = 0;
        loop {
            let waited = tokio::select! {
                waited = guest.wait() => waited,
                // Told to everyone by who noticed.
                _ = self.gone() => return None,
            };
            match waited {
                Ok(exit) => return Some(exit),
                // The agent forgot it: its container was deleted.
                Err(error) if error.is_not_found() => return None,
                Err(error) if broken < RETRIES => {
                    broken += 1;
                    tracing::debug!(%error, "asking for a process's end again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    machine.sandbox.kill().await;
                    self.lost(&format!("the connection to the guest agent broke: {error}")).await;
                    return None;
                }
            }
        }
    }

    /// Sends a signal to one process, or to all of a container.
    ///
    /// # Errors
    /// When the process has ended already, or the guest refuses.
    pub async fn signal(self: &Arc<Self>, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if process.end().is_some() {
            return Err(finished());
        }
        let number = i32::try_from(signal).map_err(|_| Failure::Invalid(format!("signal {signal}")))?;
        if container.is_sandbox() {
            if matches!(number, libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP) {
                self.stop().await;
            }
            return Ok(());
        }
        if exec.is_empty() && self.ends_builder(id, number) {
            return Ok(());
        }
        if !exec.is_empty() && process.state() == State::Created {
            return Err(Failure::Precondition(format!("process {exec} of {id} does not run")));
        }
        let failure = match self.present() {
            Ok(machine) => {
                let agent = machine.sandbox.agent();
                let sent = agent.signal(id, &process.guest, number, all);
                match machine.sandbox.while_alive(sent).await {
                    Ok(()) => return Ok(()),
                    Err(error) if error.is_not_found() => return Err(finished()),
                    Err(error) => error.into(),
                }
            }
            Err(failure) => failure,
        };
        // The machine may be on its way out, which is the best of ends for who wants to kill something.
        Err(if self.ends(&process).await { finished() } else { failure })
    }

    /// Whether a process that could not be reached ends by itself at just this moment.
    async fn ends(&self, process: &Process) -> bool {
        if tokio::time::timeout(END, process.wait()).await.is_ok() {
            return true;
        }
        // A stop tells the end of the processes last, when nothing of the machine is left.
        matches!(self.stage(), Stage::Gone(_)) && tokio::time::timeout(STOP, process.wait()).await.is_ok()
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

/// What containerd takes for success when it kills something.
fn finished() -> Failure {
    Failure::NotFound("process already finished: not found".to_owned())
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Config;
    use crate::events::Events;
    use crate::io::Names;
    use crate::metrics::Counted;
    use crate::options::Kind;
    use crate::pod::{Container, NewContainer};
    use crate::spec::Limits;
    use crate::state::{Phase, ProcessId, State as Recorded, StateFile};

    fn pod(folder: PathBuf) -> Arc<Pod> {
        let shim = ProcessId::of(std::process::id()).unwrap();
        let state = Recorded {
            phase: Phase::New,
            name: None,
            shim,
            vmm: None,
            uid: None,
            socket: folder.join("socket"),
            netns: None,
            taps: Vec::new(),
            cgroups: Vec::new(),
        };
        let address = folder.join("nobody").display().to_string();
        let state = StateFile::create(folder, state).unwrap();
        let events = Events::start(address, "test".to_owned(), Arc::new(Counted::new().unwrap()));
        Pod::new("test", "pod".to_owned(), Config::default(), events, state)
    }

    #[tokio::test]
    async fn a_signal_during_a_stop_finds_the_process_finished() {
        let folder = tempfile::tempdir().unwrap();
        let pod = pod(folder.path().join("pod"));
        let new = NewContainer {
            id: "c".to_owned(),
            bundle: PathBuf::new(),
            rootfs: Vec::new(),
            names: Names::default(),
        };
        let container = Arc::new(Container::new(&new, Kind::Member, None, Limits::default()));
        container.init.started();
        pod.containers().insert("c".to_owned(), container);
        pod.stage.send_replace(Stage::Gone("the pod was stopped".to_owned()));
        let signalled = tokio::spawn({
            let pod = Arc::clone(&pod);
            async move { pod.signal("c", "", 9, false).await }
        });
        // The machine takes longer than the end of a process does.
        tokio::time::sleep(END + Duration::from_millis(200)).await;
        assert!(!signalled.is_finished());
        pod.end_all(137, None);
        let answer = signalled.await.unwrap();
        assert!(matches!(answer, Err(Failure::NotFound(_))), "{answer:?}");
    }
}
