//! The process that serves one pod.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cloister_sandbox::programs;
use containerd_shim::Flags;
use containerd_shim::protos::sandbox_async::create_sandbox;
use containerd_shim::protos::shim_async::create_task;
use containerd_shim::protos::ttrpc::r#async::Server;
use containerd_shim::protos::ttrpc::r#async::Service;
use containerd_shim::protos::ttrpc::r#async::transport::Listener;
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, is_name};
use crate::events::Events;
use crate::logging::{self, Level};
use crate::metrics::{self, Counted};
use crate::pod::Pod;
use crate::state::{Phase, ProcessId, State, StateFile};
use crate::{cgroup, cleanup, sandboxes, task};

/// The task service's name up to containerd 1.7, and from 2.0 on.
const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// Serves until the pod is gone.
pub fn run(flags: &Flags) -> Result<()> {
    if flags.socket.is_empty() || !is_name(&flags.id) || !is_name(&flags.namespace) {
        bail!("started by hand? containerd starts this program with `start`");
    }
    let listener = inherited_listener().context("cannot use the socket that `start` made")?;
    // Before any thread exists: every mount of the pod vanishes with this process.
    isolate_mounts().context("cannot make a mount namespace")?;
    let _version = hold_version();
    let config = Config::load()?;
    let level = logging::start(Path::new("log"), &config.log, flags.debug)?;
    std::env::set_current_dir("/").context("cannot leave the bundle")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(flags, config, listener, level));
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
    }
    // Threads that wait for a reader that never comes must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Keeps the installation that this program is part of for as long as the pod lives: `cloister-node install` removes a
/// version when nobody holds its `lock`.
fn hold_version() -> Option<File> {
    let lock = File::open(programs::beside("lock")?).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockShared).ok().map(|()| lock)
}

async fn serve(flags: &Flags, config: Config, listener: UnixListener, level: Level) -> Result<()> {
    let folder = config.folder(&flags.namespace, &flags.id);
    let shim = ProcessId::of(std::process::id()).context("cannot read this process's start time")?;
    let state = State {
        phase: Phase::New,
        name: None,
        shim,
        vmm: None,
        uid: None,
        socket: flags.socket.clone().into(),
        netns: None,
        taps: Vec::new(),
        cgroups: Vec::new(),
    };
    let state = StateFile::create(folder.clone(), state)?;
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_else(|_| format!("{}.ttrpc", flags.address));
    let counted = Arc::new(Counted::new()?);
    let events = Events::start(address, flags.namespace.clone(), Arc::clone(&counted));
    let pod = Pod::new(&flags.namespace, flags.id.clone(), config, events, state);
    metrics::serve(&folder, Arc::clone(&pod))?;
    let listener = Listener::try_from(listener).context("cannot use the socket")?;
    let mut server = Server::new().add_listener(listener).register_service(services(&pod));
    server.start().await.context("cannot serve")?;
    tracing::info!(pod = pod.id, pid = std::process::id(), "serving");
    until_finished(&pod, &level).await?;
    pod.stop().await;
    let recorded = pod.recorded();
    // Elsewhere, so that the last answers leave meanwhile.
    let done = tokio::task::spawn_blocking(move || {
        cgroup::leave(&recorded.cgroups);
        cleanup::everything(&folder, &recorded)
    });
    let outcome = done.await.context("cannot tidy up")?;
    tracing::info!(pod = pod.id, "done");
    outcome
}

/// Every service under every name that a containerd may know it by.
fn services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let tasks = || create_task(Arc::new(task::Service(Arc::clone(pod))));
    let mut services = tasks();
    if let Some(service) = tasks().remove(TASK_V3) {
        services.insert(TASK_V2.to_owned(), service);
    }
    services.extend(create_sandbox(Arc::new(sandboxes::Service::new(Arc::clone(pod)))));
    services
}

/// Until containerd, or an administrator, wants the shim to end.
async fn until_finished(pod: &Arc<Pod>, level: &Level) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::user_defined1())?;
    loop {
        tokio::select! {
            () = pod.finished() => return Ok(()),
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => level.reload(),
        }
    }
    tracing::warn!("told to end by a signal");
    Ok(())
}

/// The listener that came as standard input; `/dev/null` takes its place.
fn inherited_listener() -> Result<UnixListener> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::net::sockopt::socket_acceptconn(&socket)?.then_some(()).context("it does not listen")?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A mount namespace of its own that still sees what the host mounts.
fn isolate_mounts() -> Result<()> {
    // SAFETY: only the mount namespace is unshared, by a process with one thread; no file descriptor table or file
    // system attributes are shared with anyone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(())
}
