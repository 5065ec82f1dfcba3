//! The process that owns one virtual machine.
//!
//! It is this program again, started by `run` with one end of a [`channel`]. It holds the machine's lock, the VMM and
//! its helpers (which die with it), the vsock device and the log. In the foreground it also has the command's own
//! standard streams and moves the guest's bytes straight to them; the command that started it only keeps the
//! terminal and passes signals on. When either dies the other notices at once: the channel closes.

pub mod channel;
mod inputs;
mod outcome;
pub mod start;
pub mod volumes;

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use cloister_image::{Image, Store};
use cloister_sandbox::spec::{self, BindMount};
use cloister_sandbox::{
    Container, Exit, Io, Layer, MachineConfig, PidNamespace, Process, Remote, Root, Sandbox, Scratch,
    pump::FdWriter,
};
use jiff::Timestamp;

use self::channel::{Channel, Order, Plan, Receiver, Report, Sender};
use self::inputs::{Inputs, Told};
use self::outcome::Outcome;
use crate::vm::log::{Log, Stream};
use crate::vm::record::process_start;
use crate::vm::{Folder, Record, Status, Vms};
use crate::{exit, host};

/// Tells a supervisor to end its machine at once, whatever the container does. Nothing else uses this one.
pub fn end_now() -> i32 {
    libc::SIGRTMIN() + 3
}

/// Bytes of the writable part of a container's root filesystem; its file is sparse.
const SCRATCH: u64 = 16 << 30;
/// How long a guest may take to boot; emulation on a busy machine is slow.
const BOOT: std::time::Duration = std::time::Duration::from_secs(60);
/// Seconds between asking the command of a detached machine to end and killing it, when the supervisor is asked to.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs a supervisor until its machine is gone.
pub fn main(channel: i32, lock: i32, folder: PathBuf) -> Result<()> {
    // SAFETY: the command that started this process made both descriptors for it and gave their numbers; nothing else
    // in this fresh process uses them.
    let (channel, lock) = unsafe { (OwnedFd::from_raw_fd(channel), OwnedFd::from_raw_fd(lock)) };
    for fd in [channel.as_fd(), lock.as_fd()] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)
            .context("cannot use the given descriptors")?;
    }
    let folder = Folder::at(folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut receiver, mut sender) = Channel::new(channel)?.split();
        let Some(Order::Start(plan)) = receiver.receive().await.context("cannot read the plan")? else {
            // The command was killed in between, and whoever looked since saw the lock held and left the folder to us.
            return Vms::around(&folder).remove(&folder);
        };
        let outcome = supervise(*plan, &folder, receiver, &mut sender).await;
        // The lock goes last of all: until then the folder is ours.
        drop(lock);
        // Nobody may be listening any more.
        let _ = sender.send(&Report::Ended { code: outcome.code, reason: outcome.reason }).await;
        Ok(())
    })
}

async fn supervise(plan: Plan, folder: &Folder, receiver: Receiver, sender: &mut Sender) -> Outcome {
    let mut record = plan.record.clone();
    let outcome = match Inputs::listen(receiver, plan.detach) {
        Ok(inputs) => run(plan, folder, &mut record, inputs, sender).await,
        Err(error) => Outcome::failed(exit::FAILED, format!("cannot watch signals: {error}")),
    };
    record.status = outcome.status;
    record.finished = Some(Timestamp::now());
    record.exit_code = Some(outcome.code);
    record.reason.clone_from(&outcome.reason);
    record.dialer = None;
    // A machine that never ran a command leaves no record: the one who asked is told why.
    let remove = record.remove || record.started.is_none();
    let tidy = if remove {
        Vms::around(folder).remove(folder)
    } else {
        record.save(folder.path()).and_then(|()| folder.strip(false))
    };
    if let Err(error) = tidy {
        tracing::error!("cannot tidy up: {error:#}");
    }
    outcome
}

async fn run(
    plan: Plan,
    folder: &Folder,
    record: &mut Record,
    mut inputs: Inputs,
    sender: &mut Sender,
) -> Outcome {
    let me = std::process::id();
    (record.pid, record.pid_started) = (Some(me), process_start(me));
    if let Err(error) = record.save(folder.path()) {
        return Outcome::failed(exit::FAILED, format!("{error:#}"));
    }
    // Holds the layers against a prune for as long as the machine lives.
    let image = match Store::open(&plan.store).and_then(|store| store.open_image(&plan.image)) {
        Ok(image) => image,
        Err(error) => return Outcome::failed(exit::FAILED, error.to_string()),
    };
    let host = match host::find(!plan.volumes.is_empty()) {
        Ok(host) => host,
        Err(error) => return Outcome::failed(exit::FAILED, format!("{error:#}")),
    };
    let config = MachineConfig {
        host,
        folder: folder.path().to_owned(),
        kernel: plan.kernel.clone(),
        memory_bytes: plan.memory,
        max_memory_bytes: plan.memory,
        cpus: plan.cpus,
        max_cpus: plan.cpus,
        netns: None,
        egress: None,
        privileged: plan.wishes.privileged,
        accel: plan.accel,
        boot_deadline: BOOT,
    };
    if plan.detach {
        // Fails only for a leader of a group, which has a session of its own already.
        let _ = rustix::process::setsid();
    }
    let sandbox = tokio::select! {
        booted = Sandbox::boot(&config) => match booted {
            Ok(sandbox) => sandbox,
            Err(error) => return Outcome::failed(exit::of_error(&error), error.to_string()),
        },
        outcome = inputs.abort() => return outcome,
    };
    tracing::debug!(kernel = sandbox.guest().kernel_release, "booted");
    let detach = plan.detach;
    let started = tokio::select! {
        started = start(plan, &image, folder, &sandbox) => started,
        outcome = inputs.abort() => Err(outcome),
    };
    let process = match started {
        Ok(process) => process,
        Err(outcome) => {
            sandbox.kill().await;
            return outcome;
        }
    };
    record.status = Status::Running;
    record.started = Some(Timestamp::now());
    record.dialer = Some(sandbox.dialer());
    if let Err(error) = record.save(folder.path()) {
        sandbox.kill().await;
        return Outcome::failed(exit::FAILED, format!("{error:#}"));
    }
    // A dead listener is noticed below.
    let _ = sender.send(&Report::Started { timings: sandbox.timings().steps().to_vec() }).await;
    if detach {
        inputs.tied = false;
        let_go();
    }
    let remote = process.remote();
    let stop_signal = record.defaults.stop_signal;
    let ended = tokio::select! {
        ended = until_exit(process, &sandbox) => ended,
        outcome = obey(&mut inputs, remote, stop_signal) => Err(outcome),
    };
    match ended {
        Ok(exit) => {
            sandbox.stop().await;
            let reason = exit.oom_killed.then(|| "its command used more memory than it was given".to_owned());
            Outcome { code: exit.code, reason, status: Status::Exited }
        }
        Err(outcome) => {
            sandbox.kill().await;
            outcome
        }
    }
}

/// Shares volumes, writes the specification, starts the command.
async fn start(plan: Plan, image: &Image, folder: &Folder, sandbox: &Sandbox) -> Result<Process, Outcome> {
    let failed = |error: cloister_sandbox::Error| Outcome::failed(exit::of_error(&error), error.to_string());
    let own = |error: anyhow::Error| Outcome::failed(exit::FAILED, format!("{error:#}"));
    let mut wishes = plan.wishes;
    for (number, volume) in plan.volumes.iter().enumerate() {
        let prepared = volumes::prepare(volume, number, folder.path()).map_err(own)?;
        let mut source = sandbox.share(&prepared.share).await.map_err(failed)?;
        if let Some(file) = prepared.file {
            source = format!("{source}/{file}");
        }
        wishes.binds.push(BindMount {
            source,
            destination: prepared.destination,
            read_only: volume.read_only,
        });
    }
    let spec = spec::build(&image.config, &wishes).map_err(failed)?;
    let layers: std::io::Result<Vec<_>> = image
        .layer_files()
        .iter()
        .map(|layer| Ok(Layer { diff_id: layer.diff_id, file: layer.file.try_clone()? }))
        .collect();
    let log = Log::create(folder.path())
        .with_context(|| format!("cannot write a log in {}", folder.path().display()))
        .map_err(own)?;
    let io =
        streams(&log, plan.interactive, plan.detach, plan.terminal).map_err(|error| own(error.into()))?;
    let container = Container {
        id: plan.record.name.clone(),
        root: Root::Layers {
            layers: layers.context("cannot use the image's layers").map_err(own)?,
            scratch: Some(Scratch::nameless(SCRATCH, folder.path().to_owned())),
        },
        spec,
        user: plan.user,
        pid_namespace: PidNamespace::Own,
        pid_container: String::new(),
        block_devices: Vec::new(),
    };
    sandbox.run(container, io).await.map_err(failed)
}

/// Connects this process's own standard streams, and the log.
fn streams(log: &Log, interactive: bool, detach: bool, terminal: Option<(u16, u16)>) -> std::io::Result<Io> {
    let screen =
        |fd: std::os::fd::BorrowedFd<'_>| -> std::io::Result<Option<Box<dyn std::io::Write + Send>>> {
            if detach { Ok(None) } else { Ok(Some(Box::new(FdWriter::new(fd.try_clone_to_owned()?)))) }
        };
    let stdin = if interactive { Some(std::io::stdin().as_fd().try_clone_to_owned()?) } else { None };
    Ok(Io {
        stdin,
        stdout: Some(log.tee(Stream::Out, screen(std::io::stdout().as_fd())?)),
        stderr: Some(log.tee(Stream::Err, screen(std::io::stderr().as_fd())?)),
        terminal,
    })
}

async fn until_exit(process: Process, sandbox: &Sandbox) -> Result<Exit, Outcome> {
    let lost = |reason: String| Outcome::failed(exit::FAILED, reason);
    let exit = tokio::select! {
        biased;
        exit = process.wait() => match exit {
            Ok(exit) => exit,
            // The machine's own end, known in a moment, says more than a broken connection.
            Err(error) => {
                let moment = std::time::Duration::from_secs(1);
                return Err(match tokio::time::timeout(moment, sandbox.ended()).await {
                    Ok(reason) => lost(format!("the virtual machine ended: {reason}")),
                    Err(_) => lost(error.to_string()),
                });
            }
        },
        reason = sandbox.ended() => return Err(lost(format!("the virtual machine ended: {reason}"))),
    };
    process.drain().await;
    Ok(exit)
}

/// Does what the supervisor is told until the machine must go.
async fn obey(inputs: &mut Inputs, remote: Remote, stop_signal: i32) -> Outcome {
    let mut deadline = None;
    loop {
        let told = tokio::select! {
            told = inputs.next() => told,
            () = until(deadline) => {
                deadline = None;
                spawn_call(&remote, |remote| async move { remote.signal_all(libc::SIGKILL).await });
                continue;
            }
        };
        match told {
            // In the order they come, and without waiting: the loop must go on hearing.
            Told::Signal(number) => {
                spawn_call(&remote, move |remote| async move { remote.signal(number).await })
            }
            Told::Resize(rows, columns) => {
                spawn_call(&remote, move |remote| async move { remote.resize(rows, columns).await });
            }
            Told::Term => {
                deadline = Some(tokio::time::Instant::now() + GRACE);
                spawn_call(&remote, move |remote| async move { remote.signal(stop_signal).await });
            }
            Told::End => return Outcome::failed(exit::of_signal(libc::SIGKILL), "it was removed by force"),
            Told::Orphaned => return Outcome::failed(exit::FAILED, "the command that started it was killed"),
        }
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Makes a call whose failure is worth a word and nothing more; it ends by its own deadline.
fn spawn_call<F>(remote: &Remote, call: impl FnOnce(Remote) -> F)
where
    F: Future<Output = Result<(), cloister_sandbox::Error>> + Send + 'static,
{
    let call = call(remote.clone());
    tokio::spawn(async move {
        if let Err(error) = call.await {
            tracing::warn!("{error}");
        }
    });
}

/// Cuts a detached supervisor off from the terminal it came from: nobody reads its messages any more.
fn let_go() {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    match null {
        Ok(null) => {
            // Failing to close a terminal's last use is no reason to end a machine.
            let _ = rustix::stdio::dup2_stderr(&null);
        }
        Err(error) => tracing::warn!(%error, "cannot open /dev/null"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::vm::record::tests::record;

    #[test]
    fn a_supervisor_without_a_plan_takes_its_folder_away() {
        let run = std::env::temp_dir().join(format!("cloister-unplanned-{}", std::process::id()));
        let vms = Vms::new(run.clone());
        let (folder, lock) = vms.create(&record("web", Status::Starting)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        // The command is killed between starting it and telling it what to do; its copy of the lock goes with it.
        drop(ours);
        main(theirs.into_raw_fd(), lock.into_raw_fd(), folder.path().to_owned()).unwrap();
        let left = folder.path().exists();
        std::fs::remove_dir_all(run).unwrap();
        assert!(!left);
    }
}
