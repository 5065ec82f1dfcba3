//! What a VM is made of when it boots: nothing here knows what will run in it.

use std::path::PathBuf;

use crate::{Accel, Error, Result, User};

/// One mebibyte in bytes; memory sizes are multiples of [`MEMORY_STEP`].
pub const MIB: u64 = 1 << 20;
/// Memory grows and shrinks in steps of this many bytes (the block size of virtio-mem with huge pages).
pub const MEMORY_STEP: u64 = 2 * MIB;

/// The host's programs and the identity they run under.
#[derive(Debug, Clone)]
pub struct Host {
    /// `qemu-system-x86_64`, version 10.0 or newer.
    pub qemu: PathBuf,
    /// `qboot.rom`, the firmware that does no more than start a kernel.
    pub firmware: PathBuf,
    /// `virtiofsd`, version 1.13 or newer.
    pub virtiofsd: PathBuf,
    /// `passt`, for [`crate::Egress`]; of August 2024 or later.
    pub passt: Option<PathBuf>,
    /// Who QEMU runs as when this process is root; must then be set, and is ignored otherwise.
    pub user: Option<User>,
}

impl Host {
    /// The places Debian puts the programs; `virtiofsd` comes from the caller, since distributions differ.
    pub fn debian(virtiofsd: PathBuf, user: Option<User>) -> Self {
        Self {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            firmware: "/usr/share/qemu/qboot.rom".into(),
            virtiofsd,
            passt: Some("/usr/bin/passt".into()),
            user,
        }
    }
}

/// The guest console's log on the host. The guest is hostile: the file is bounded and its bytes must be
/// filtered before they reach a terminal.
#[derive(Debug, Clone)]
pub struct Console {
    /// Where the log is written; the older half is kept beside it as `<path>.1`.
    pub path: PathBuf,
    /// Most bytes both files take together.
    pub limit: u64,
}

/// A generic VM.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// An existing folder that only we can write; holds nothing that must be kept.
    pub run_dir: PathBuf,
    /// An uncompressed kernel with a PVH entry point (`vmlinux`), or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs, with the agent as `/init`.
    pub initrd: Option<PathBuf>,
    /// Appended to [`BASE_CMDLINE`].
    pub cmdline: String,
    /// Memory at boot, in bytes.
    pub memory: u64,
    /// Most memory it may grow to, in bytes, including `memory`.
    pub max_memory: u64,
    /// Virtual processors at boot (as `maxcpus=` on the kernel command line).
    pub cpus: u32,
    /// Most virtual processors it may grow to. More than one makes a boot in emulation slower: see the README.
    pub max_cpus: u32,
    /// Devices that can be plugged, at most 31: vsock, disks, shares, networks; the first growth of memory takes one.
    pub hotplug_ports: usize,
    /// Emulation or KVM.
    pub accel: Accel,
    /// The console's log.
    pub console: Console,
    /// The network namespace the monitor runs in (`/run/netns/…`); ours if absent. Needs root.
    pub netns: Option<PathBuf>,
    /// A folder written by [`crate::Vmm::snapshot`] of a VM with this same configuration: continue from there.
    pub restore: Option<PathBuf>,
}

/// Kernel command line every VM gets: console on the serial port, a panic ends the VM at once, no calibration of clocks
/// that the hypervisor keeps right. The reasons are in `kernel/README.md`.
pub const BASE_CMDLINE: &str = include_str!("../../kernel/cmdline").trim_ascii();

impl VmConfig {
    /// A VM of 256 MiB that can grow to 4 GiB, with one processor and 31 slots.
    pub fn new(run_dir: PathBuf, kernel: PathBuf, initrd: Option<PathBuf>) -> Self {
        let console = Console { path: run_dir.join("console.log"), limit: MIB };
        Self {
            run_dir,
            kernel,
            initrd,
            cmdline: String::new(),
            memory: 256 * MIB,
            max_memory: 4096 * MIB,
            cpus: 1,
            max_cpus: 1,
            hotplug_ports: crate::qemu::ports::MAX_PORTS,
            accel: Accel::Auto,
            console,
            netns: None,
            restore: None,
        }
    }

    /// Checks what QEMU would complain about in its own words, or not at all.
    pub(crate) fn check(&self) -> Result<()> {
        if self.memory < 32 * MIB || !self.memory.is_multiple_of(MEMORY_STEP) {
            return Err(Error::invalid(
                "memory",
                format!("{} bytes is not a multiple of 2 MiB from 32 MiB", self.memory),
            ));
        }
        if self.max_memory < self.memory || !self.max_memory.is_multiple_of(MEMORY_STEP) {
            return Err(Error::invalid(
                "max_memory",
                format!("{} bytes is below memory or no multiple of 2 MiB", self.max_memory),
            ));
        }
        if self.cpus == 0 || self.max_cpus < self.cpus || self.max_cpus > 255 {
            return Err(Error::invalid(
                "cpus",
                format!("{} of at most {} is not in 1..=255", self.cpus, self.max_cpus),
            ));
        }
        if self.hotplug_ports > crate::qemu::ports::MAX_PORTS {
            return Err(Error::invalid(
                "hotplug_ports",
                format!("{} is more than {}", self.hotplug_ports, crate::qemu::ports::MAX_PORTS),
            ));
        }
        Ok(())
    }
}
