//! The containers of this guest and their processes.

mod create;
mod exec;
mod oom;
mod pids;
mod process;
mod signal;
mod stdio;
mod update;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_protocol::{limits, v1};
use libcontainer::oci_spec::runtime::Spec;

pub use process::{Entry, Process};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result, lock};
use crate::inroot::Root;
use crate::reaper::Reaper;
use crate::rootfs::Mounted;
use crate::streams::Streams;

/// Where each container has a folder, named by a number.
const FOLDERS: &str = "/run/cloister/containers";

/// How long processes may take to die of SIGKILL.
const KILL: Duration = Duration::from_secs(10);

/// All containers.
pub struct Containers {
    /// The kernel command line allows privileged containers.
    privileged: bool,
    reaper: Arc<Reaper>,
    streams: Arc<Streams>,
    next: AtomicU64,
    table: Mutex<HashMap<String, Slot>>,
    oom: oom::Watch,
    pids: pids::Pids,
}

/// A name is taken as soon as its container is being made.
enum Slot {
    Creating,
    Ready(Arc<Container>),
}

/// One container.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its folder below [`FOLDERS`].
    folder: PathBuf,
    /// Its root file system.
    pub rootfs: Mounted,
    /// Its cgroup.
    pub cgroup: Cgroup,
    spec: Spec,
    /// Its processes; the init process has the empty name.
    processes: Mutex<HashMap<String, Entry>>,
}

impl Containers {
    /// No containers yet.
    pub fn new(privileged: bool, reaper: Arc<Reaper>, streams: Arc<Streams>) -> Self {
        Self {
            privileged,
            reaper,
            streams,
            next: AtomicU64::new(1),
            table: Mutex::default(),
            oom: oom::Watch::new(),
            pids: pids::Pids::default(),
        }
    }

    /// The container of a name.
    ///
    /// # Errors
    /// When there is none, or it is being made.
    pub fn get(&self, id: &str) -> Result<Arc<Container>> {
        match lock(&self.table).get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating) => Err(Error::state(format!("container {id} is being created"))),
            None => Err(Error::state(format!("there is no container {id:?}"))),
        }
    }

    /// All containers that are ready.
    pub fn all(&self) -> Vec<Arc<Container>> {
        let ready = |slot: &Slot| match slot {
            Slot::Ready(container) => Some(Arc::clone(container)),
            Slot::Creating => None,
        };
        lock(&self.table).values().filter_map(ready).collect()
    }

    /// A process by its container's name and its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(&self, reference: Option<v1::ProcessRef>) -> Result<Arc<Process>> {
        let reference = reference.ok_or_else(|| Error::invalid("no process named"))?;
        self.get(&reference.container_id)?.process(&reference.exec_id)
    }

    /// Out-of-memory kills from now on, by container name.
    pub fn oom_events(&self) -> tokio::sync::broadcast::Receiver<String> {
        self.oom.subscribe()
    }

    fn reserve(&self, id: &str) -> Result<()> {
        if !limits::is_id(id) {
            return Err(Error::invalid(format!("{id:?} is no container id")));
        }
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container {id} exists already")));
        }
        if table.len() >= limits::CONTAINERS {
            return Err(Error::new(
                Kind::Exhausted,
                format!("{} containers are running", limits::CONTAINERS),
            ));
        }
        table.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    /// Ends what is left of a container and takes its mounts apart. Blocks.
    ///
    /// # Errors
    /// When something outlives SIGKILL or holds a mount; the container is still there then.
    pub fn delete(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        container.cgroup.kill(KILL)?;
        container.hang_up();
        container.cgroup.remove()?;
        let unmounted = container.rootfs.unmount();
        lock(&self.table).remove(id);
        remove_folder(&container.folder);
        unmounted
    }

    fn folder(&self) -> Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(FOLDERS).join(number.to_string());
        fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

impl Container {
    /// A process by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        match lock(&self.processes).get(exec) {
            Some(Entry::Ready(process)) => Ok(Arc::clone(process)),
            Some(Entry::Starting) => {
                Err(Error::state(format!("process {exec:?} of container {} is starting", self.id)))
            }
            None => Err(Error::state(format!("container {} has no process {exec:?}", self.id))),
        }
    }

    /// All processes, with their names.
    pub fn processes(&self) -> Vec<(String, Arc<Process>)> {
        let ready = |(name, entry): (&String, &Entry)| match entry {
            Entry::Ready(process) => Some((name.clone(), Arc::clone(process))),
            Entry::Starting => None,
        };
        lock(&self.processes).iter().filter_map(ready).collect()
    }

    /// The root as the container sees it, volumes included, while its init process runs; without them otherwise.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn root(&self) -> Result<Root> {
        if let Ok(init) = self.process("")
            && init.exit().is_none()
            && let Ok(root) = Root::open(Path::new(&format!("/proc/{}/root", init.pid)))
        {
            return Ok(root);
        }
        Root::open(&self.rootfs.root)
    }

    /// Ends all streams of the processes.
    fn hang_up(&self) {
        for (_, process) in self.processes() {
            process.hang_up();
        }
    }
}

/// Removes the folder of a container after its mounts are gone. What is left is a few bytes of tmpfs.
fn remove_folder(folder: &Path) {
    // Never descends into a file system that is still mounted: each is a folder of its own and made empty by unmount.
    for name in ["root", "upper"] {
        let _ = fs::remove_dir(folder.join(name));
    }
    if !folder.join("root").exists() && !folder.join("upper").exists() {
        let _ = fs::remove_dir_all(folder);
    }
}
