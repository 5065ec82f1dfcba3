//! One pod: its machine, its containers, their processes.

mod builder;
mod container;
mod machine;
mod network;
mod processes;
mod resources;
mod setup;
mod standin;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

pub use self::container::{Container, NewContainer};
pub use self::machine::{Machine, Stage};
pub use self::setup::{Files, Refused, Setup};
use crate::builder::Handle;
use crate::config::Config;
use crate::events::Events;
use crate::failure::{Failure, Result};
use crate::metrics::{Counted, Ending};
use crate::process::Process;
use crate::state::{State, StateFile};

/// A pod.
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    config: Config,
    /// Its folder of state.
    folder: PathBuf,
    events: Events,
    /// Figures about it.
    pub counted: Arc<Counted>,
    state: Mutex<StateFile>,
    stage: watch::Sender<Stage>,
    /// The monitor's process id, 0 before there is one.
    pid: AtomicU32,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Ends its builder, if it is a builder's.
    builder: OnceLock<Handle>,
    stopping: tokio::sync::Mutex<()>,
    /// Where its last figures go, until they are there.
    last_page: Mutex<Option<PathBuf>>,
    /// Whether it was made through the sandbox service, which then also ends it.
    by_service: AtomicBool,
    /// True once the shim has nothing left to do.
    finished: watch::Sender<bool>,
}

impl Pod {
    /// A pod of which nothing exists but its folder.
    pub fn new(namespace: &str, id: String, config: Config, events: Events, state: StateFile) -> Arc<Self> {
        let folder = config.folder(namespace, &id);
        let last_page = Mutex::new(Some(config.last_page(namespace, &id)));
        Arc::new(Self {
            id,
            config,
            folder,
            counted: events.counted(),
            events,
            state: Mutex::new(state),
            stage: watch::channel(Stage::Absent).0,
            pid: AtomicU32::new(0),
            containers: Mutex::default(),
            builder: OnceLock::new(),
            stopping: tokio::sync::Mutex::default(),
            last_page,
            by_service: AtomicBool::new(false),
            finished: watch::channel(false).0,
        })
    }

    /// What stands for the pod on the host: the monitor's process id.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// What stands for the processes of a container on the host.
    pub fn pid_of(&self, container: &str) -> u32 {
        let own = self.containers().get(container).and_then(|container| container.pid());
        own.unwrap_or_else(|| self.pid())
    }

    /// How far its machine has come.
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Waits until the machine is gone and says why.
    pub async fn gone(&self) -> String {
        let mut stage = self.stage.subscribe();
        let gone = stage.wait_for(|stage| matches!(stage, Stage::Gone(_))).await;
        match gone.as_deref() {
            Ok(Stage::Gone(reason)) => reason.clone(),
            _ => "the pod is gone".to_owned(),
        }
    }

    /// Ends the shim once what is going on is done.
    pub fn finish(&self) {
        self.finished.send_replace(true);
    }

    /// Waits for [`Pod::finish`].
    pub async fn finished(&self) {
        // The sender lives as long as this.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    /// What is on disk.
    pub fn recorded(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).state().clone()
    }

    fn update(&self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).update(change)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container of the pod.
    ///
    /// # Errors
    /// When there is none with this id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .ok_or_else(|| Failure::NotFound(format!("container {id} is not known: not found")))
    }

    /// Whether nothing is left that containerd could ask about.
    pub fn is_over(&self) -> bool {
        let serving = matches!(*self.stage.borrow(), Stage::Booting | Stage::Running(_));
        self.count() == 0 && !serving && !self.by_service.load(Ordering::Relaxed)
    }

    /// How many containers it has, its sandbox included.
    pub fn count(&self) -> usize {
        self.containers().len()
    }

    /// How many of them are not its sandbox.
    pub fn members(&self) -> usize {
        self.containers().values().filter(|container| !container.is_sandbox()).count()
    }

    /// A process has ended: told once, to everyone.
    fn ended(&self, process: &Process, code: u32, ending: Ending, reason: Option<&str>) {
        if process.ended(code, reason)
            && let Some(end) = process.end()
        {
            tracing::info!(container = process.container, exec = process.exec, code, reason, "process ended");
            let pid = self.pid_of(&process.container);
            self.events.exited(&process.container, &process.exec, pid, code, end.at);
            let of_sandbox = self.container(&process.container).is_ok_and(|c| c.is_sandbox());
            if process.exec.is_empty() && !of_sandbox {
                self.counted.exited(ending);
            }
        }
    }

    /// Every process has ended.
    fn end_all(&self, code: u32, reason: Option<&str>) {
        let ending = if reason.is_some() { Ending::Lost } else { Ending::Stopped };
        let containers: Vec<Arc<Container>> = self.containers().values().cloned().collect();
        // The sandbox's own end comes last, as it would with a process that all others hang on.
        let (sandbox, members): (Vec<_>, Vec<_>) = containers.iter().partition(|c| c.is_sandbox());
        for container in members.into_iter().chain(sandbox) {
            for process in container.all() {
                self.ended(&process, code, ending, reason);
            }
        }
    }
}
