//! The virtual machine below a sandbox: its monitor, what is plugged into it, and how it ends.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_view::disk;
use cloister_vmm::{
    Accel, DeviceId, Egress, Event, Extent, Host, ImageDisk, MEMORY_STEP, Metrics, Qemu, RawDisk, Tap,
    VmConfig, Vmm,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::container::{Layer, Share};
use crate::dial::{Dialer, Door};
use crate::error::{Error, printable};

/// How long the monitor may hold a connection that the guest neither takes nor refuses.
const DIAL: Duration = Duration::from_secs(10);

/// What the guest's kernel, its reserves and the agent need beside the containers, in bytes, on top of [`memory_for`]'s 48th;
/// measured, see "Memory beside the container" in `docs/performance.md`.
pub const OVERHEAD: u64 = 64 << 20;
/// The part of the containers' memory that the guest needs on top of it for page structures and what grows like them.
const PAGES: u64 = 48;

/// Bytes of memory for a machine whose containers may use `containers` bytes, with `overhead` bytes for the guest itself.
pub fn memory_for(containers: u64, overhead: u64) -> u64 {
    let wanted = containers.saturating_add(containers / PAGES).saturating_add(overhead);
    wanted.div_ceil(MEMORY_STEP).saturating_mul(MEMORY_STEP)
}

/// A guest kernel and the initramfs with the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// Uncompressed kernel image.
    pub vmlinux: PathBuf,
    /// cpio archive with the agent as `/init`.
    pub initramfs: PathBuf,
}

/// A generic virtual machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Programs of the host and who runs them.
    pub host: Host,
    /// Private folder for sockets and the console's log; short, as sockets' paths are limited.
    pub folder: PathBuf,
    /// What to boot.
    pub kernel: Kernel,
    /// Memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Most memory it may grow to, in bytes, a multiple of 2 MiB.
    pub max_memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
    /// Most processors it may grow to.
    pub max_cpus: u32,
    /// Whether privileged containers may run in it.
    pub privileged: bool,
    /// The network namespace its monitor runs in; that of this process if absent.
    pub netns: Option<PathBuf>,
    /// A way out for the guest, which has no interface otherwise until one is plugged.
    pub egress: Option<Egress>,
    /// Hardware virtualisation or emulation.
    pub accel: Accel,
    /// How long kernel and agent may take to come up.
    pub boot_deadline: Duration,
}

/// A running machine; dropping it ends it.
pub(crate) struct Machine {
    qemu: Arc<Qemu>,
    door: Door,
    ended: watch::Receiver<Option<String>>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Machine {
    /// Starts a machine's monitor and lets its processors run.
    pub(crate) async fn start(config: &MachineConfig) -> Result<Self, Error> {
        let mut vm = VmConfig::new(
            config.folder.clone(),
            config.kernel.vmlinux.clone(),
            Some(config.kernel.initramfs.clone()),
        );
        vm.memory = config.memory_bytes;
        vm.max_memory = config.max_memory_bytes.max(config.memory_bytes);
        vm.cpus = config.cpus;
        vm.max_cpus = config.max_cpus.max(config.cpus);
        vm.accel = config.accel;
        vm.netns.clone_from(&config.netns);
        if config.privileged {
            vm.cmdline = "cloister.privileged=1".to_owned();
        }
        let qemu = Arc::new(Qemu::create(&config.host, vm).await?);
        if let Some(warning) = qemu.warning() {
            tracing::warn!("{warning}");
        }
        let (sender, ended) = watch::channel(None);
        let watcher = tokio::spawn(watch_end(Arc::clone(&qemu), sender));
        let path = config.folder.join("door");
        let door = Door::open(&path, {
            let qemu = Arc::clone(&qemu);
            move |port| {
                let qemu = Arc::clone(&qemu);
                async move {
                    let stream = qemu.dial(port, DIAL).await.map_err(|error| error.to_string())?;
                    stream.into_fd().map_err(|error| error.to_string())
                }
            }
        })
        .map_err(|cause| Error::File { what: "listen on", path, cause })?;
        let machine = Self { qemu, door, ended, watcher };
        machine.qemu.start().await?;
        Ok(machine)
    }

    /// How to reach the guest.
    pub(crate) fn dialer(&self) -> Dialer {
        self.door.dialer()
    }

    /// Resolves when the machine, or a daemon it can't go on without, has ended.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await;
        reason
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_else(|| "nobody watches it any more".to_owned())
    }

    /// Process id of the monitor.
    pub(crate) fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// The last the guest printed on its console, on one bounded line.
    pub(crate) fn last_words(&self) -> String {
        self.qemu.last_words()
    }

    /// Whether the host ever failed to read or write what the guest asked a disk for.
    pub(crate) fn disk_failed(&self) -> bool {
        self.qemu.disk_failed()
    }

    /// The machine's counters.
    pub(crate) async fn metrics(&self) -> Result<Metrics, Error> {
        Ok(self.qemu.metrics().await?)
    }

    /// Plugs the read-only disk of an image's layers.
    pub(crate) async fn plug_image(&self, serial: &str, layers: &[Layer]) -> Result<DeviceId, Error> {
        Ok(self.qemu.plug_image(image_disk(serial, layers)?).await?)
    }

    /// Plugs a raw disk.
    pub(crate) async fn plug_disk(&self, disk: RawDisk) -> Result<DeviceId, Error> {
        Ok(self.qemu.plug_disk(disk).await?)
    }

    /// Takes a disk out.
    pub(crate) async fn unplug(&self, device: &DeviceId, limit: Duration) -> Result<(), Error> {
        Ok(self.qemu.unplug(device, limit).await?)
    }

    /// Plugs a network interface.
    pub(crate) async fn plug_tap(&self, tap: Tap) -> Result<(), Error> {
        self.qemu.plug_tap(tap).await?;
        Ok(())
    }

    /// Plugs a way out.
    pub(crate) async fn plug_egress(&self, egress: Egress) -> Result<(), Error> {
        self.qemu.plug_egress(egress).await?;
        Ok(())
    }

    /// Sets what the guest is offered.
    pub(crate) async fn resize(&self, memory_bytes: u64, cpus: u32) -> Result<(), Error> {
        self.qemu.set_memory(memory_bytes).await?;
        self.qemu.set_cpus(cpus).await?;
        Ok(())
    }

    /// Shares a folder of the host.
    pub(crate) async fn plug_share(&self, share: &Share) -> Result<(), Error> {
        let share = cloister_vmm::Share {
            tag: share.tag.clone(),
            path: share.path.clone(),
            read_only: share.read_only,
        };
        self.qemu.plug_share(share).await?;
        Ok(())
    }

    /// Ends the machine and everything that belongs to it.
    pub(crate) async fn kill(&self) {
        self.watcher.abort();
        self.qemu.stop().await;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Says once why the machine ended.
async fn watch_end(qemu: Arc<Qemu>, sender: watch::Sender<Option<String>>) {
    let mut events = qemu.events();
    let helper_failed = async {
        loop {
            match events.recv().await {
                Ok(Event::ShareFailed { tag, reason }) => {
                    return format!("the daemon of the share {tag} ended: {}", printable(&reason));
                }
                Ok(Event::EgressFailed { reason }) => {
                    return format!("the daemon of its network ended: {}", printable(&reason));
                }
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    let reason = tokio::select! {
        exit = qemu.wait() => printable(&exit.to_string()),
        reason = helper_failed => reason,
    };
    sender.send_replace(Some(reason));
}

/// The layers as one disk: a partition table in memory in front of and behind the layers' own files.
fn image_disk(serial: &str, layers: &[Layer]) -> Result<ImageDisk, Error> {
    let named = layers.iter().enumerate().map(|(source, layer)| {
        let len = layer
            .file
            .metadata()
            .map_err(|cause| Error::System { what: "read the size of a layer", cause })?
            .len();
        Ok(disk::Layer { source, len, diff_id: layer.diff_id })
    });
    let layout = disk::layout(named.collect::<Result<_, Error>>()?, disk::ALIGN_4K).map_err(Error::Disk)?;
    let duplicate = |file: &File| {
        file.try_clone().map(OwnedFd::from).map_err(|cause| Error::System { what: "use a layer", cause })
    };
    let head = in_memory("image-head", &layout.head)?;
    let mut extents = vec![Extent { file: duplicate(&head)?, offset: 0, len: layout.head.len() as u64 }];
    for part in &layout.parts {
        if let Some(layer) = layers.get(part.source) {
            extents.push(Extent { file: duplicate(&layer.file)?, offset: 0, len: part.len });
        }
        if part.pad > 0 {
            extents.push(Extent { file: duplicate(&head)?, offset: layout.zeros as u64, len: part.pad });
        }
    }
    let tail = in_memory("image-tail", &layout.tail)?;
    extents.push(Extent { file: tail.into(), offset: 0, len: layout.tail.len() as u64 });
    Ok(ImageDisk { serial: serial.to_owned(), extents })
}

/// A file without a name that holds `bytes`.
fn in_memory(name: &str, bytes: &[u8]) -> Result<File, Error> {
    let failed = |cause| Error::System { what: "keep a partition table in memory", cause };
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(failed)?;
    Ok(file)
}
