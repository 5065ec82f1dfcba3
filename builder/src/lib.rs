//! The microVM that runs buildkitd.
//!
//! One privileged container in one VM, without a network unless steps are to have one. buildkitd listens on a unix socket of that container and on nothing
//! else, so no step of a build can reach it over the guest's loopback; the agent relays our connections to it. What it
//! keeps is on a disk of its own, ext4 with overlayfs snapshots: a scratch disk that goes with the machine, or a
//! [`CacheDisk`] that outlives it.

mod bounds;
mod cache;
mod config;
mod disks;
mod error;
mod guest;
mod image;
mod limits;
mod log;
mod oom;
pub mod pod;
mod timings;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cloister_image::Image;
use cloister_sandbox::{
    Agent, Connection, Container, Io, Layer, MachineConfig, PidNamespace, Process, Root, Sandbox, Scratch,
    spec,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::bounds::{Account, Bounds};
pub use self::cache::{CacheDisk, Caches};
pub use self::config::Names;
pub use self::disks::Disk;
pub use self::error::{Error, Result};
pub use self::guest::{STATE, configure, mount_state, unmount_state, wishes, write_back};
pub use self::image::{HIDDEN, ImageSource, load};
pub use self::limits::{limit, steps_memory};
pub use self::log::Tail;
pub use self::oom::{Kills, Memory};
pub use self::timings::Timings;

/// The container's name in its guest.
pub const CONTAINER: &str = "buildkitd";
/// buildkitd's socket in that container.
pub const SOCKET: &str = "/run/buildkit/buildkitd.sock";
/// First pause between two attempts to connect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// What a builder is made of.
#[derive(Debug)]
pub struct Settings {
    /// The machine; [`MachineConfig::privileged`] must be set.
    pub machine: MachineConfig,
    /// Bytes of memory for buildkitd and all steps together; the machine's is [`cloister_sandbox::memory_for`] them.
    pub memory_bytes: u64,
    /// Where buildkitd keeps its state.
    pub state: State,
    /// Whom steps ask for names, on a machine that has a way out.
    pub names: Names,
    /// How long buildkitd may take to listen, from the start of its process.
    pub deadline: Duration,
}

/// The disk of buildkitd's state.
#[derive(Debug)]
pub enum State {
    /// An empty one of this many bytes that goes with the machine; its file is made in the folder.
    Scratch(u64, PathBuf),
    /// One that outlives the machine.
    Cache(CacheDisk),
}

/// A running buildkitd. Dropping it ends its machine.
pub struct Builder {
    sandbox: Sandbox,
    tail: Tail,
    exited: watch::Receiver<Option<String>>,
    watcher: JoinHandle<()>,
    cache: Option<CacheDisk>,
    timings: Timings,
    memory_bytes: u64,
    kills: Kills,
}

impl Builder {
    /// Boots the machine, starts buildkitd of `image` in it and waits until it listens.
    ///
    /// # Errors
    /// When the machine does not come up, or buildkitd does not: the end of its log is part of the message.
    pub async fn start(settings: Settings, image: Image) -> Result<Self> {
        let mut timings = Timings::begin();
        let Settings { machine, memory_bytes, state, names, deadline } = settings;
        let sandbox = Sandbox::boot(&machine).await?;
        timings.boot();
        let (bytes, serial, cache) = match state {
            State::Scratch(bytes, folder) => {
                (bytes, sandbox.plug_scratch(Scratch::nameless(bytes, folder)).await?, None)
            }
            State::Cache(disk) => {
                let serial = sandbox.plug_temporary(disk.file()?).await?;
                (disk.bytes(), serial, Some(disk))
            }
        };
        let source = mount_state(&sandbox, serial).await?;

        let tail = Tail::default();
        let container = container(&image, memory_bytes, source)?;
        let io = Io { stderr: Some(Box::new(tail.clone())), ..Io::default() };
        let process = sandbox.create(container, io).await?;
        configure(sandbox.agent(), CONTAINER, bytes, &names).await?;
        sandbox.start(CONTAINER).await?;
        timings.started();

        let (sender, exited) = watch::channel(None);
        let watcher = tokio::spawn(watch_exit(process, image, sender));
        let kills = Kills::watch(sandbox.agent(), CONTAINER).await?;
        let mut builder = Self { sandbox, tail, exited, watcher, cache, timings, memory_bytes, kills };
        builder.listen(deadline).await?;
        tokio::select! {
            biased;
            // It may listen for a moment before it finds that it can't go on.
            reason = builder.ended() => return Err(builder.silent(reason)),
            limited = limit(builder.sandbox.agent(), CONTAINER, memory_bytes) => limited?,
        }
        builder.timings.ready();
        Ok(builder)
    }

    /// Waits until buildkitd takes a connection, which is then closed again.
    async fn listen(&self, deadline: Duration) -> Result<()> {
        tokio::select! {
            biased;
            reason = self.ended() => Err(self.silent(reason)),
            connection = connect(self.sandbox.agent(), CONTAINER, SOCKET, deadline) => match connection {
                Ok(_) => Ok(()),
                Err(error) => Err(self.silent(error.to_string())),
            },
        }
    }

    fn silent(&self, cause: String) -> Error {
        Error::NotReady { cause, log: self.tail.text() }
    }

    /// One more connection to buildkitd.
    ///
    /// # Errors
    /// When the guest or buildkitd does not take it.
    pub async fn connect(&self) -> Result<Connection> {
        Ok(self.sandbox.agent().forward_unix(CONTAINER, SOCKET).await?)
    }

    /// Resolves when the machine or buildkitd has ended, with one line saying why.
    pub async fn ended(&self) -> String {
        let mut exited = self.exited.clone();
        let buildkitd = async {
            match exited.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = self.sandbox.ended() => reason,
            reason = buildkitd => reason,
        }
    }

    /// Whether a process was killed because memory ran out, at `since` or later: the bytes there are, and the most that
    /// were in use.
    pub async fn out_of_memory(&self, since: Instant) -> Option<Memory> {
        self.kills.since(self.sandbox.agent(), CONTAINER, self.memory_bytes, since).await
    }

    /// The last that buildkitd wrote, on one printable line.
    pub fn log(&self) -> String {
        self.tail.text()
    }

    /// How long the start took.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// How other processes of the host reach the guest.
    pub fn dialer(&self) -> cloister_sandbox::Dialer {
        self.sandbox.dialer()
    }

    /// Ends the machine. A cache disk is kept when it could be unmounted, and dropped otherwise.
    pub async fn stop(mut self) {
        if let Some(disk) = self.cache.take() {
            let mut exited = self.exited.clone();
            let ended = async { drop(exited.wait_for(Option::is_some).await) };
            match write_back(&self.sandbox, CONTAINER, true, ended).await {
                Ok(()) => {
                    self.sandbox.kill().await;
                    if let Err(error) = disk.keep() {
                        tracing::warn!(%error, "the build cache is lost");
                    }
                    return;
                }
                Err(error) => tracing::warn!(%error, "the build cache is lost"),
            }
        }
        self.sandbox.kill().await;
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Connects to a unix socket of a container as soon as something listens there, with growing pauses between attempts.
///
/// # Errors
/// When nothing does within `deadline`.
pub async fn connect(agent: &Agent, container: &str, path: &str, deadline: Duration) -> Result<Connection> {
    let begun = Instant::now();
    let (mut pause, longest) = BACKOFF;
    loop {
        match agent.forward_unix(container, path).await {
            Ok(connection) => return Ok(connection),
            Err(error) if begun.elapsed() + pause >= deadline => return Err(error.into()),
            Err(error) => tracing::trace!(%error, "not yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// The privileged container of buildkitd.
fn container(image: &Image, memory_bytes: u64, state: String) -> Result<Container> {
    let layers = image.layer_files().iter().map(|layer| {
        let file = layer.file.try_clone();
        file.map(|file| Layer { diff_id: layer.diff_id, file })
    });
    let layers = layers.collect::<std::io::Result<Vec<_>>>().map_err(Error::Layers)?;
    Ok(Container {
        id: CONTAINER.to_owned(),
        root: Root::Layers { layers, scratch: None },
        spec: spec::build(&image.config, &wishes(memory_bytes, state))?,
        user: String::new(),
        pid_namespace: PidNamespace::Own,
        pid_container: String::new(),
        block_devices: Vec::new(),
    })
}

/// Tells how buildkitd ended. Holds the image's layers until then.
async fn watch_exit(process: Process, image: Image, sender: watch::Sender<Option<String>>) {
    let reason = match process.wait().await {
        Ok(exit) if exit.oom_killed => "buildkitd was killed: out of memory".to_owned(),
        Ok(exit) => format!("buildkitd ended with code {}", exit.code),
        Err(error) => error.to_string(),
    };
    process.drain().await;
    drop(image);
    sender.send_replace(Some(reason));
}
