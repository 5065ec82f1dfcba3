//! QEMU as a [`Vmm`].

mod args;
mod grow;
mod metrics;
mod net;
mod plug;
pub(crate) mod ports;
mod snapshot;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, broadcast, watch};

use crate::accel::{self, Chosen};
use crate::bootfile::BootFile;
use crate::config::{Host, VmConfig};
use crate::console;
use crate::disk::{ImageDisk, RawDisk};
use crate::egress::Egress;
use crate::process::{Exited, Launch, Process};
use crate::qmp::{Qmp, QmpEvent};
use crate::share::Share;
use crate::tsc;
use crate::vmm::{Cause, DeviceId, Event, Exit, Metrics, Tap, Vmm};
use crate::vsock::{Transport, VsockStream};
use crate::{Error, Result, User};

/// The oldest QEMU this driver is tested with.
const MINIMUM: (i64, i64, i64) = (10, 0, 0);
/// How long QEMU may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long QEMU gets to end by itself once told to.
const QUIT_LIMIT: Duration = Duration::from_secs(2);
/// How long a broken connection waits for the end of the process that explains it.
const EXPLAIN_LIMIT: Duration = Duration::from_millis(500);
/// Files and sockets one QEMU may hold: two for each piece of an image disk while it is plugged.
const OPEN_FILES: u64 = 16_384;

/// One VM run by QEMU.
#[derive(Debug)]
pub struct Qemu {
    // Declared first so that the process dies before what it talks to.
    process: Process,
    qmp: Qmp,
    host: Host,
    config: VmConfig,
    warning: Option<String>,
    requested: Arc<AtomicBool>,
    disk_failed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<Exit>>,
    events: broadcast::Sender<Event>,
    /// Processors the guest was offered.
    cpus: AtomicU32,
    ports: ports::Ports,
    plugged: Mutex<plug::Plugged>,
    /// Our own descriptor of the guest's memory, for snapshots.
    memory: OwnedFd,
    vsock: Mutex<Option<Arc<Transport>>>,
    vsock_port: Mutex<Option<ports::Port>>,
    /// What only the boot needs: released at the guest's first answer.
    boot_files: Mutex<Vec<BootFile>>,
}

impl Vmm for Qemu {
    async fn create(host: &Host, config: VmConfig) -> Result<Self> {
        config.check()?;
        let tsc = tsc::Measurement::start();
        let saved = config.restore.as_deref().map(|folder| snapshot::open(folder, &config)).transpose()?;
        let accel = accel::choose(config.accel)?;
        let warning = match &accel {
            Chosen::Tcg { warning } => warning.clone(),
            Chosen::Kvm(_) => None,
        };
        let user = identity(host)?;
        let memory = snapshot::memory(config.memory, saved.as_ref())?;
        let (qmp_ours, qmp_theirs) = UnixStream::pair().map_err(Error::os("create the QMP socket pair"))?;
        let ports = ports::Ports::new(config.hotplug_ports);
        let (transport, frontend, vsock_port) = if saved.is_none() {
            let (transport, frontend) = Transport::open()?;
            (Some(Arc::new(transport)), Some(frontend), Some(ports.take()?))
        } else {
            (None, None, None)
        };
        let (kernel, initrd) = boot_files(&config).await?;
        let netns = config.netns.as_deref().map(|p| open("network namespace", p)).transpose()?;
        let inherited = args::Inherited {
            firmware: open("firmware", &host.firmware)?,
            kernel: kernel.duplicate()?,
            initrd: initrd.as_ref().map(BootFile::duplicate).transpose()?,
            memory: memory.try_clone().map_err(Error::os("duplicate the memory's descriptor"))?,
            qmp: qmp_theirs.into(),
            console: console::start(&config.console)?,
            vsock: frontend,
        };
        let (args, inherit) = args::build(&config, accel, tsc.khz().await, inherited);
        tracing::debug!(?args, "starting QEMU");
        let launch = Launch {
            what: "QEMU",
            program: host.qemu.clone(),
            args: args.into_iter().map(Into::into).collect(),
            inherit,
            user,
            netns,
            open_files: OPEN_FILES,
        };
        let process = launch.start().await?;
        let qmp = connect(&process, qmp_ours).await?;

        let (requested, disk_failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (exit_sender, exit) = watch::channel(None);
        let (events, _) = broadcast::channel(64);
        let watcher = Watcher {
            exited: process.exited(),
            qmp: qmp.events(),
            requested: requested.clone(),
            disk_failed: disk_failed.clone(),
            console: config.console.path.clone(),
        };
        tokio::spawn(watcher.watch(exit_sender, events.clone()));
        let cpus = AtomicU32::new(config.cpus);
        let vm = Self {
            process,
            qmp,
            host: host.clone(),
            config,
            warning,
            requested,
            disk_failed,
            exit,
            events,
            cpus,
            ports,
            plugged: Mutex::default(),
            memory,
            vsock: Mutex::new(transport),
            vsock_port: Mutex::new(vsock_port),
            boot_files: Mutex::new([Some(kernel), initrd].into_iter().flatten().collect()),
        };
        if let Some(saved) = saved {
            vm.explain(snapshot::load(&vm, saved).await).await?;
        }
        Ok(vm)
    }

    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    async fn start(&self) -> Result<()> {
        self.resume().await
    }

    async fn pause(&self) -> Result<()> {
        self.explain(self.qmp.run(qapi::qmp::stop {}).await).await.map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.explain(self.qmp.run(qapi::qmp::cont {}).await).await.map(drop)
    }

    async fn stop(&self) -> Exit {
        self.requested.store(true, Ordering::Relaxed);
        // QEMU may be gone or stuck: the kill below settles it.
        let _ = tokio::time::timeout(QUIT_LIMIT, self.qmp.run(qapi::qmp::quit {})).await;
        if tokio::time::timeout(QUIT_LIMIT, self.wait()).await.is_err() {
            self.process.kill();
        }
        self.wait().await
    }

    async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|e| e.clone());
        ended.unwrap_or_else(|| Exit { cause: Cause::Failed, detail: "its watcher is gone".into() })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn plug_image(&self, disk: ImageDisk) -> Result<DeviceId> {
        self.explain(plug::image(self, disk).await).await
    }

    async fn plug_disk(&self, disk: RawDisk) -> Result<DeviceId> {
        self.explain(plug::raw(self, disk).await).await
    }

    async fn plug_share(&self, share: Share) -> Result<DeviceId> {
        self.explain(plug::share(self, share).await).await
    }

    async fn plug_tap(&self, tap: Tap) -> Result<DeviceId> {
        self.explain(net::tap(self, tap).await).await
    }

    async fn plug_egress(&self, egress: Egress) -> Result<DeviceId> {
        self.explain(net::egress(self, egress).await).await
    }

    async fn unplug(&self, device: &DeviceId, limit: Duration) -> Result<()> {
        self.explain(plug::unplug(self, device, limit).await).await
    }

    async fn set_memory(&self, total: u64) -> Result<()> {
        self.explain(grow::memory(self, total).await).await
    }

    async fn set_cpus(&self, total: u32) -> Result<()> {
        grow::cpus(self, total)
    }

    async fn dial(&self, port: u32, limit: Duration) -> Result<VsockStream> {
        match self.transport().await?.dial(port, limit).await {
            Ok(stream) => {
                self.release_boot_files().await?;
                Ok(stream)
            }
            // Only the end of the VM closes its vsock device.
            Err(Error::Dial { source, port }) if source.kind() == std::io::ErrorKind::NotConnected => {
                self.explain(Err(Error::Dial { source, port })).await
            }
            outcome => outcome,
        }
    }

    async fn dial_until_ready(&self, port: u32, limit: Duration) -> Result<VsockStream> {
        let transport = self.transport().await?;
        let stream = tokio::select! {
            dialled = transport.dial_until_ready(port, limit) => self.explain(dialled).await?,
            exit = self.wait() => return Err(Error::Exited(exit)),
        };
        self.release_boot_files().await?;
        Ok(stream)
    }

    async fn metrics(&self) -> Result<Metrics> {
        self.explain(metrics::read(self).await).await
    }

    async fn snapshot(&self, folder: &Path) -> Result<()> {
        self.explain(snapshot::save(self, folder).await).await
    }
}

impl Qemu {
    async fn transport(&self) -> Result<Arc<Transport>> {
        self.vsock
            .lock()
            .await
            .clone()
            .ok_or_else(|| Error::invalid("vsock", "this VM was saved and has none any more"))
    }

    /// Frees what QEMU keeps of kernel and initramfs: a guest that answers has read both.
    async fn release_boot_files(&self) -> Result<()> {
        std::mem::take(&mut *self.boot_files.lock().await).into_iter().try_for_each(BootFile::release)
    }

    /// The path of the console's log.
    pub fn console(&self) -> &Path {
        &self.config.console.path
    }

    /// Process id of QEMU, for cgroups and tests.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Replaces the error of a broken connection by the reason the process ended, if it did.
    async fn explain<T: Send>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(Error::Protocol(_) | Error::Os { .. } | Error::Dial { .. }) => {
                match tokio::time::timeout(EXPLAIN_LIMIT, self.wait()).await {
                    Ok(exit) => Err(Error::Exited(exit)),
                    Err(_) => outcome,
                }
            }
            other => other,
        }
    }
}

/// Kernel and initramfs in memory.
async fn boot_files(config: &VmConfig) -> Result<(BootFile, Option<BootFile>)> {
    let (kernel, initrd) = (config.kernel.clone(), config.initrd.clone());
    let read = move || {
        let initrd = initrd.map(|path| BootFile::read("initramfs", &path)).transpose()?;
        Ok((BootFile::read("guest kernel", &kernel)?, initrd))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|e| Err(Error::Os { what: "read kernel and initramfs", source: e.into() }))
}

fn open(what: &'static str, path: &Path) -> Result<OwnedFd> {
    File::open(path).map(Into::into).map_err(|source| Error::File { what, path: path.to_owned(), source })
}

/// Who helpers run as that need no privileges: somebody else if this process is root.
fn identity(host: &Host) -> Result<Option<User>> {
    match (rustix::process::geteuid().is_root(), host.user) {
        (false, _) => Ok(None),
        (true, Some(user)) if user.uid != 0 => Ok(Some(user)),
        (true, _) => Err(Error::invalid("VMM user", "must be set, and not root, when started as root")),
    }
}

/// Waits for QEMU's greeting, or for its last words.
async fn connect(process: &Process, socket: UnixStream) -> Result<Qmp> {
    let qmp = match tokio::time::timeout(START_LIMIT, Qmp::connect(socket)).await {
        Ok(Ok(qmp)) => qmp,
        Ok(Err(broken)) => {
            let end = tokio::time::timeout(EXPLAIN_LIMIT, process.exited().wait()).await;
            return Err(end.map_or(broken, |detail| Error::Exited(Exit { cause: Cause::Failed, detail })));
        }
        Err(_) => return Err(Error::Timeout { what: "the start of QEMU".into(), limit: START_LIMIT }),
    };
    if qmp.version() < MINIMUM {
        let text = |v: (i64, i64, i64)| format!("{}.{}.{}", v.0, v.1, v.2);
        return Err(Error::Version { found: text(qmp.version()), minimum: text(MINIMUM) });
    }
    Ok(qmp)
}

/// Finds out how the VM ended.
struct Watcher {
    exited: Exited,
    qmp: broadcast::Receiver<QmpEvent>,
    requested: Arc<AtomicBool>,
    disk_failed: Arc<AtomicBool>,
    console: PathBuf,
}

impl Watcher {
    async fn watch(mut self, sender: watch::Sender<Option<Exit>>, events: broadcast::Sender<Event>) {
        let mut reason = None;
        let mut connected = true;
        let words = loop {
            tokio::select! {
                words = self.exited.wait() => break words,
                event = self.qmp.recv(), if connected => connected = self.note(event, &mut reason),
            }
        };
        // What QEMU said before it went may still be under way.
        while connected {
            let event = tokio::time::timeout(EXPLAIN_LIMIT, self.qmp.recv()).await;
            connected = event.is_ok_and(|e| self.note(e, &mut reason));
        }
        let exit = self.judge(reason.as_deref(), words);
        tracing::debug!(%exit, "VM ended");
        sender.send_replace(Some(exit.clone()));
        // Nobody listening is fine.
        let _ = events.send(Event::Exited(exit));
    }

    /// Remembers the reason of a shutdown, and that a disk has failed; false when the connection is closed.
    fn note(
        &self,
        event: Result<QmpEvent, broadcast::error::RecvError>,
        reason: &mut Option<String>,
    ) -> bool {
        match event {
            Ok(event) if event.name == "SHUTDOWN" => *reason = event.text("reason").map(str::to_owned),
            // Said once, however often the guest tries.
            Ok(event)
                if event.name == "BLOCK_IO_ERROR" && !self.disk_failed.swap(true, Ordering::Relaxed) =>
            {
                let (what, why) = disk_failure(&event);
                tracing::warn!(
                    "a disk of the guest failed to {what}, which the guest is told as an error: {why}"
                );
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return false,
        }
        true
    }

    fn judge(&self, reason: Option<&str>, words: String) -> Exit {
        let (cause, detail) = match reason {
            _ if self.requested.load(Ordering::Relaxed) => (Cause::Requested, String::new()),
            Some("guest-shutdown") => (Cause::GuestShutdown, String::new()),
            Some("guest-reset" | "guest-panic") => (Cause::GuestReset, console::last_words(&self.console)),
            _ => (Cause::Failed, words),
        };
        Exit { cause, detail }
    }
}

impl Qemu {
    /// Whether the host ever failed to read or write what the guest asked a disk for.
    pub fn disk_failed(&self) -> bool {
        self.disk_failed.load(Ordering::Relaxed)
    }

    /// The last the guest printed, on one bounded line without control characters; empty when it printed nothing.
    pub fn last_words(&self) -> String {
        console::last_words(&self.config.console.path)
    }
}

/// What failed and why, in words of our own: a QEMU that its guest has taken over may send any.
fn disk_failure(event: &QmpEvent) -> (&'static str, &'static str) {
    const FULL: &str = "No space left on device";
    let what = if event.text("operation") == Some("read") { "read" } else { "write" };
    (what, if event.text("reason") == Some(FULL) { FULL } else { "Input/output error" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_qemu_about_a_disk_go_no_further() {
        let told = |operation: &str, reason: &str| {
            let data = serde_json::json!({"operation": operation, "reason": reason});
            let data = data.as_object().cloned().unwrap();
            disk_failure(&QmpEvent { name: "BLOCK_IO_ERROR".into(), data })
        };
        assert_eq!(told("write", "No space left on device"), ("write", "No space left on device"));
        assert_eq!(told("read", "Remote I/O error"), ("read", "Input/output error"));
        assert_eq!(told("\u{1b}[2J", &"x".repeat(1 << 20)), ("write", "Input/output error"));
        assert_eq!(disk_failure(&QmpEvent { name: String::new(), data: Default::default() }).0, "write");
    }
}
