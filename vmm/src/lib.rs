//! One microVM: machine, devices, hot-plug, vsock transport, file sharing.
//!
//! [`Vmm`] is what a driver can do, [`Qemu`] the first one. A VM boots *generic*: nothing about what will run in it is
//! on its command line. Disks, shares, networks, memory and processors are plugged in afterwards, so a cold boot and
//! a copy of a saved VM differ in nothing but where the VM came from.
//!
//! The guest is hostile, and so is a monitor the guest has taken over: QEMU runs as an unprivileged user behind its
//! seccomp filter, opens no path (everything is a passed descriptor), writes no log of its own, and never guesses a
//! disk's format. QEMU and `virtiofsd` die with the process that started them, whatever ends it.

pub mod accel;
mod bootfile;
mod config;
mod console;
mod disk;
pub mod egress;
mod error;
mod process;
mod qemu;
mod qmp;
mod share;
mod tsc;
mod vmm;
mod vsock;

pub use accel::Accel;
pub use config::{BASE_CMDLINE, Console, Host, MEMORY_STEP, MIB, VmConfig};
pub use disk::{Extent, ImageDisk, MAX_EXTENTS, RawDisk, SECTOR};
pub use egress::Egress;
pub use error::{Error, Result};
pub use process::User;
pub use qemu::Qemu;
pub use share::Share;
pub use vmm::{Cause, DeviceId, DiskMetrics, Event, Exit, Metrics, StreamMetrics, Tap, Vmm};
pub use vsock::VsockStream;
