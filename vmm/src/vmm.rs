//! What every driver of a virtual machine monitor can do.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::Result;
use crate::config::{Host, VmConfig};
use crate::disk::{ImageDisk, RawDisk};
use crate::egress::Egress;
use crate::share::Share;
use crate::vsock::VsockStream;

/// A device that was plugged in; unplug it with [`Vmm::unplug`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceId(pub(crate) String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network interface: an opened tap.
#[derive(Debug)]
pub struct Tap {
    /// `/dev/net/tun` after `TUNSETIFF` with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub fd: OwnedFd,
    /// Hardware address the guest sees.
    pub mac: [u8; 6],
}

/// Something that happened to a VM without being asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The daemon of a share ended; the guest's accesses to it hang or fail from now on.
    ShareFailed {
        /// The share.
        tag: String,
        /// How it ended, in one line.
        reason: String,
    },
    /// The daemon of an [`Egress`] ended: what the guest sends gets nowhere from now on.
    EgressFailed {
        /// How it ended, in one line.
        reason: String,
    },
    /// The VM ended. Nothing follows.
    Exited(Exit),
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Who ended it.
    pub cause: Cause,
    /// More about it in one line, printable characters only; may be empty.
    pub detail: String,
}

/// Who ended a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// [`Vmm::stop`] or dropping the VM.
    Requested,
    /// The guest powered off.
    GuestShutdown,
    /// The guest panicked or rebooted; a VM never runs a second time.
    GuestReset,
    /// The monitor itself failed or was killed.
    Failed,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            Cause::Requested => "the VM was stopped",
            Cause::GuestShutdown => "the guest powered off",
            Cause::GuestReset => "the guest's kernel panicked or rebooted",
            Cause::Failed => "the virtual machine monitor ended unexpectedly",
        })?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// Counters of one VM, as the host sees it.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Memory the guest has, in bytes, growth included.
    pub memory: u64,
    /// Virtual processors the guest was offered.
    pub cpus: u32,
    /// Resident memory of the monitor's process, in bytes.
    pub rss: u64,
    /// The same with shared pages divided among their users, in bytes.
    pub pss: u64,
    /// Processor time the monitor used, virtual processors included, in milliseconds.
    pub cpu_ms: u64,
    /// Of each disk, in order of its serial.
    pub disks: Vec<DiskMetrics>,
    /// Of the vsock connections.
    pub streams: StreamMetrics,
}

/// Counters of a VM's vsock connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct StreamMetrics {
    /// Open now; unknown where the kernel carries them.
    pub open: Option<u64>,
    /// Opened so far, by either side; where the kernel carries them, by the host.
    pub opened: u64,
}

/// Counters of one disk.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct DiskMetrics {
    /// The device.
    pub device: String,
    /// Bytes the guest read.
    pub read_bytes: u64,
    /// Bytes the guest wrote.
    pub written_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// One running VM.
///
/// Dropping it kills everything that belongs to it; so does the death of the process that owns it, at once. The
/// methods may be called from several tasks. A call that plugs or unplugs should be awaited to its end: when it is
/// abandoned half-way the device may stay until the VM ends.
pub trait Vmm: Sized + Send + Sync {
    /// Makes a VM that does not run yet.
    ///
    /// # Errors
    /// A program or file is missing or unusable, with its path; or the monitor's own last words.
    fn create(host: &Host, config: VmConfig) -> impl Future<Output = Result<Self>> + Send;
    /// One line about a slow accelerator, for the user, if there is something to say.
    fn warning(&self) -> Option<&str>;
    /// Lets the virtual processors run for the first time.
    fn start(&self) -> impl Future<Output = Result<()>> + Send;
    /// Stops the virtual processors; memory and devices stay.
    fn pause(&self) -> impl Future<Output = Result<()>> + Send;
    /// Continues after [`pause`](Self::pause).
    fn resume(&self) -> impl Future<Output = Result<()>> + Send;
    /// Ends the VM at once, as pulling the plug does. A graceful end is the guest agent's work.
    fn stop(&self) -> impl Future<Output = Exit> + Send;
    /// Waits until the VM has ended, for whatever reason; noticed within milliseconds.
    fn wait(&self) -> impl Future<Output = Exit> + Send;
    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Plugs a read-only disk made of many pieces.
    fn plug_image(&self, disk: ImageDisk) -> impl Future<Output = Result<DeviceId>> + Send;
    /// Plugs a raw disk.
    fn plug_disk(&self, disk: RawDisk) -> impl Future<Output = Result<DeviceId>> + Send;
    /// Shares a folder.
    fn plug_share(&self, share: Share) -> impl Future<Output = Result<DeviceId>> + Send;
    /// Plugs a network interface.
    fn plug_tap(&self, tap: Tap) -> impl Future<Output = Result<DeviceId>> + Send;
    /// Plugs a network interface behind which an ordinary process of the host speaks for the guest.
    fn plug_egress(&self, egress: Egress) -> impl Future<Output = Result<DeviceId>> + Send;
    /// Takes a device out and waits until the guest has let go of it, at most `limit`.
    fn unplug(&self, device: &DeviceId, limit: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Sets the memory the guest is offered in total, in bytes: a multiple of 2 MiB between the memory at boot and
    /// the maximum. The guest takes it up (or gives it back, as far as it can) in its own time: see [`Metrics::memory`].
    fn set_memory(&self, total: u64) -> impl Future<Output = Result<()>> + Send;
    /// Raises the number of virtual processors, which the guest then has to bring online
    /// (`/sys/devices/system/cpu/cpuN/online`). A bound on processor time is the cgroup's business.
    fn set_cpus(&self, total: u32) -> impl Future<Output = Result<()>> + Send;

    /// Connects to a vsock port of the guest, at most `limit`. Refused when nothing listens there.
    fn dial(&self, port: u32, limit: Duration) -> impl Future<Output = Result<VsockStream>> + Send;
    /// As [`dial`](Self::dial), but tries again while a starting guest refuses; ends early when the VM ends.
    fn dial_until_ready(
        &self,
        port: u32,
        limit: Duration,
    ) -> impl Future<Output = Result<VsockStream>> + Send;

    /// Reads the counters.
    fn metrics(&self) -> impl Future<Output = Result<Metrics>> + Send;
    /// Saves a VM without plugged devices into an existing folder, from which [`VmConfig::restore`] makes any number of
    /// copies. Its vsock connections are cut; the VM is left paused.
    fn snapshot(&self, folder: &Path) -> impl Future<Output = Result<()>> + Send;
}
