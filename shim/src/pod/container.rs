//! One container of a pod: making it, and taking it away.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use cloister_image::LayerFile;
use cloister_sandbox::{BlockDevice, PidNamespace, Root, Scratch};
use containerd_shim::protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use tracing::Instrument;

use super::standin::StandIn;
use super::{Files, Machine, Pod, Setup};
use crate::failure::{Failure, Result};
use crate::io::Names;
use crate::options::{self, Kind};
use crate::process::{End, Process};
use crate::rootfs::{self, Wanted};
use crate::spec::{self, Limits};

/// containerd's annotation with what the pod calls a container.
const NAME: &str = "io.kubernetes.cri.container-name";

/// A container that containerd asks for.
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root filesystem.
    pub rootfs: Vec<Mount>,
    /// The streams of its process.
    pub names: Names,
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    kind: Kind,
    /// What stands for it on the host, when it is one of a pod's.
    stand_in: Option<StandIn>,
    /// Its own process.
    pub init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Numbers the guest's names of its further processes.
    next: AtomicU64,
    paused: AtomicBool,
    limits: Mutex<Limits>,
    /// Kept from being removed from their store.
    layers: Mutex<Vec<LayerFile>>,
}

impl Container {
    pub(super) fn new(new: &NewContainer, kind: Kind, stand_in: Option<StandIn>, limits: Limits) -> Self {
        Self {
            id: new.id.clone(),
            bundle: new.bundle.clone(),
            kind,
            stand_in,
            init: Arc::new(Process::new(&new.id, "", "", new.names.clone(), Vec::new())),
            execs: Mutex::default(),
            next: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            limits: Mutex::new(limits),
            layers: Mutex::default(),
        }
    }

    /// The process id that is its own on the host, if it has one.
    pub fn pid(&self) -> Option<u32> {
        self.stand_in.as_ref().map(|stand_in| stand_in.pid)
    }

    /// Whether it only stands for the pod.
    pub fn is_sandbox(&self) -> bool {
        self.kind == Kind::Sandbox
    }

    /// Whether its processes stand still.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Remembers whether its processes stand still.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what it may use.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Keeps its layers from being removed from their store.
    fn hold(&self, layers: Vec<LayerFile>) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of its processes; an empty name is its own.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs().get(exec).cloned();
        found.ok_or_else(|| {
            Failure::NotFound(format!("process {exec} does not exist in {}: not found", self.id))
        })
    }

    /// All its processes, its own last.
    pub fn all(&self) -> Vec<Arc<Process>> {
        let mut all: Vec<Arc<Process>> = self.execs().values().cloned().collect();
        all.push(Arc::clone(&self.init));
        all
    }

    /// Announces one more process. The guest knows it by a name that is never used twice.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn add_exec(&self, exec: &str, names: Names, spec: Vec<u8>) -> Result<()> {
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            return Err(Failure::Exists(format!("process {exec} of {} exists: already exists", self.id)));
        }
        let guest = format!("exec{}", self.next.fetch_add(1, Ordering::Relaxed));
        execs.insert(exec.to_owned(), Arc::new(Process::new(&self.id, exec, &guest, names, spec)));
        Ok(())
    }

    /// Forgets a process.
    pub fn remove_exec(&self, exec: &str) {
        self.execs().remove(exec);
    }
}

impl Pod {
    /// Makes a container.
    ///
    /// # Errors
    /// When it can't be made; nothing is left of it then.
    pub async fn create(self: &Arc<Self>, new: NewContainer) -> Result<u32> {
        let spec = options::read(&new.bundle)?;
        let (kind, _) = options::kind(&new.id, &options::annotations(&spec));
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        let stand_in = match kind {
            Kind::Member => Some(StandIn::start(self.recorded().netns.as_deref())?),
            Kind::Sandbox | Kind::Single => None,
        };
        let container = Arc::new(Container::new(&new, kind, stand_in, spec::limits(resources.as_ref())));
        {
            let mut containers = self.containers();
            if containers.contains_key(&new.id) {
                return Err(Failure::Exists(format!("container {} exists: already exists", new.id)));
            }
            containers.insert(new.id.clone(), Arc::clone(&container));
        }
        let made = match kind {
            Kind::Sandbox => self.boot(Setup::from_spec(kind, &spec)?).await.map(drop),
            Kind::Member => self.make(&container, &new, &spec).await,
            Kind::Single => match self.boot(Setup::from_spec(kind, &spec)?).await {
                Ok(_) => self.make(&container, &new, &spec).await,
                Err(failure) => Err(failure),
            },
        };
        if let Err(failure) = made {
            self.containers().remove(&new.id);
            if let Ok(machine) = self.present() {
                machine.volumes.release(&new.id).await;
            }
            return Err(failure);
        }
        if kind != Kind::Sandbox {
            self.counted.created(options::annotations(&spec).get(NAME).map(String::as_str));
        }
        let pid = self.pid_of(&new.id);
        self.events.created(&new.id, &new.bundle.display().to_string(), &new.names, pid);
        Ok(pid)
    }

    /// The machine, if it serves now.
    pub fn present(&self) -> Result<Arc<Machine>> {
        match self.stage() {
            super::Stage::Running(machine) => Ok(machine),
            super::Stage::Gone(reason) => Err(Failure::Other(reason)),
            _ => Err(Failure::Precondition("the pod's machine is not up".to_owned())),
        }
    }

    /// Makes a container in the guest.
    async fn make(
        self: &Arc<Self>,
        container: &Arc<Container>,
        new: &NewContainer,
        host: &Spec,
    ) -> Result<()> {
        let wanted = rootfs::wanted(&new.rootfs, new.bundle.join("rootfs"));
        // Opened while the guest may still be booting.
        let layers = match &wanted {
            Wanted::Snapshot(snapshot) => {
                let snapshot = snapshot.clone();
                let opened = tokio::task::spawn_blocking(move || rootfs::layers(&snapshot));
                opened.await.map_err(Failure::other)??
            }
            Wanted::Mounts | Wanted::Folder(_) => Vec::new(),
        };
        let machine = self.machine().await?;
        self.make_room(&machine).await?;
        let mut mounts = host.mounts().clone().unwrap_or_default();
        if machine.setup.files.is_some() {
            Files::mount(&self.folder, &mut mounts)?;
        }
        if let Some(wish) = &machine.builder {
            let root = self.root(&machine, new, wanted, &layers, None).await?;
            container.hold(layers);
            return self.make_builder(&machine, wish, container, host, mounts, root).await;
        }
        let prepared = machine.volumes.prepare(&new.id, &mounts).await?;
        let scratch = Some(Scratch::nameless(self.config.scratch(), self.config.disks.clone()));
        let root = self.root(&machine, new, wanted, &layers, scratch).await?;
        let mut block_devices = prepared.blocks;
        for block in spec::blocks(host) {
            let source = block_node(block.number)?;
            let serial = machine.volumes.plug(&new.id, &source, block.read_only).await?;
            let (mode, uid, gid) = block.owner;
            let path = block.path.display().to_string();
            block_devices.push(BlockDevice { serial, path, read_only: block.read_only, mode, uid, gid });
        }
        let (pid_namespace, pid_container) = self.pids_for(host);
        let guest = cloister_sandbox::Container {
            id: new.id.clone(),
            root,
            spec: spec::translate(host, prepared.mounts)?,
            user: String::new(),
            pid_namespace,
            pid_container,
            block_devices,
        };
        let io = container.init.open().await?;
        let process = machine.sandbox.create(guest, io).await?;
        container.hold(layers);
        let follow = Arc::clone(self).follow(machine, Arc::clone(&container.init), process);
        tokio::spawn(follow.in_current_span());
        Ok(())
    }

    /// A container's root filesystem, made fit for the guest. What is written to one of layers is on a disk, which
    /// the snapshotter counts as the snapshot's, or in memory.
    async fn root(
        &self,
        machine: &Machine,
        new: &NewContainer,
        wanted: Wanted,
        layers: &[LayerFile],
        scratch: Option<Scratch>,
    ) -> Result<Root> {
        Ok(match wanted {
            Wanted::Snapshot(snapshot) => {
                let named = |scratch| Scratch { name: Some(snapshot.join(rootfs::SCRATCH)), ..scratch };
                Root::Layers { layers: rootfs::share(layers)?, scratch: scratch.map(named) }
            }
            Wanted::Mounts => {
                tracing::warn!(
                    container = new.id,
                    "the image is shared file by file, which is slow: configure the snapshotter \"cloister\" for this runtime"
                );
                let mount = |target: &std::path::Path| rootfs::mount(&new.rootfs, target);
                Root::Share(machine.volumes.share_rootfs(&new.id, mount).await?)
            }
            Wanted::Folder(folder) => {
                let bind = |target: &std::path::Path| {
                    rustix::mount::mount_bind_recursive(&folder, target)
                        .with_context(|| format!("cannot share {}", folder.display()))
                };
                Root::Share(machine.volumes.share_rootfs(&new.id, bind).await?)
            }
        })
    }

    /// Whose process ids a new container sees, and which container's if it is one's.
    fn pids_for(&self, spec: &Spec) -> (PidNamespace, String) {
        let joined = spec::joined_process(spec);
        let containers = self.containers();
        let target = containers.values().find(|container| joined.is_some() && container.pid() == joined);
        match target {
            Some(target) => (PidNamespace::Container, target.id.clone()),
            None => (spec::pid_namespace(spec), String::new()),
        }
    }

    /// Takes a container away that does not run.
    ///
    /// # Errors
    /// When it still runs, or the guest does not let go of it.
    pub async fn delete(&self, id: &str) -> Result<End> {
        let container = self.container(id)?;
        if container.init.state() == crate::process::State::Running {
            return Err(Failure::Precondition(format!("container {id} runs: kill it first")));
        }
        if container.is_sandbox() || container.kind == Kind::Single {
            self.stop().await;
        } else if let Ok(machine) = self.present() {
            // Its disks' counters go with it.
            self.counted.read(&machine).await;
            match machine.sandbox.delete(id).await {
                Ok(()) => {}
                // What the guest never had, or a machine that ended meanwhile: nothing is left either way.
                Err(error) if error.is_not_found() || self.present().is_err() => {}
                Err(error) => return Err(error.into()),
            }
            machine.volumes.release(id).await;
        }
        let end = container.init.end().unwrap_or(End { code: 137, at: std::time::SystemTime::now() });
        let pid = self.pid_of(id);
        self.containers().remove(id);
        self.events.deleted(id, pid, end.code, end.at);
        Ok(end)
    }
}

/// The node of a block device of the host, by its numbers.
fn block_node((major, minor): (i64, i64)) -> Result<PathBuf> {
    let missing = || Failure::Other(format!("the host has no block device {major}:{minor}"));
    let about =
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).map_err(|_| missing())?;
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or_else(missing)?;
    let path = PathBuf::from("/dev").join(name);
    let meta = std::fs::metadata(&path)
        .map_err(|error| Failure::Other(format!("cannot use {}: {error}", path.display())))?;
    let number = std::os::unix::fs::MetadataExt::rdev(&meta);
    let found = (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
    if !std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type()) || found != (major, minor) {
        return Err(missing());
    }
    Ok(path)
}
