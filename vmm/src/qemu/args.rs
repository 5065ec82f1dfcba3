//! QEMU's command line: one generic machine. Everything it opens is an inherited descriptor.

use std::os::fd::{AsRawFd, OwnedFd};

use super::ports::BUS;
use crate::accel::Chosen;
use crate::config::{BASE_CMDLINE, MIB, VmConfig};
use crate::vsock::Frontend;

/// Id of the machine's memory.
const RAM: &str = "ram";
/// Id of the vsock device, which sits in the first slot so that it can be taken out for a snapshot.
pub(crate) const VSOCK: &str = "vsock";

/// What QEMU inherits.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub firmware: OwnedFd,
    pub kernel: OwnedFd,
    pub initrd: Option<OwnedFd>,
    /// A memfd as long as the memory at boot.
    pub memory: OwnedFd,
    /// One end of the QMP socket pair.
    pub qmp: OwnedFd,
    /// One end of the console's socket pair.
    pub console: OwnedFd,
    /// Absent in a restored VM, which gets it plugged in.
    pub vsock: Option<Frontend>,
}

/// Machine options, without the accelerator: nothing that a pod does not need, everything hot-plug needs.
/// PCI slots are hot-plugged through ACPI (the default of q35), which takes a device out without the five
/// seconds a PCIe attention button blinks.
const MACHINE: &str =
    "q35,smbus=off,sata=off,usb=off,vmport=off,hpet=off,graphics=off,dump-guest-core=off,mem-merge=off";

/// Everything QEMU may never do, however it is taken over (see `-sandbox` in qemu(1)).
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Processor model in emulation. Five-level page tables make every page walk longer.
const TCG_CPU: &str = "max,la57=off";

/// Bytes of translated code emulation keeps at most: an eighth of the guest's memory.
///
/// What does not fit is translated again, so a small guest that does much is slower; but this memory counts against the
/// pod as much as the guest's own, and QEMU's default is a gigabyte. A boot fills 36 MiB, most of it used once.
fn translated_code(config: &VmConfig) -> u64 {
    let least = 16 * MIB + 4 * MIB * u64::from(config.max_cpus - 1);
    (config.memory / 8).clamp(least, 1024 * MIB)
}

/// What a guest in emulation is told of its clocks, which under KVM it learns from kvm-clock.
///
/// Without a deadline timer Linux spends 0.14 s on measuring the local APIC's. One processor alone can use the PIT in
/// its place; several need the local timers.
fn emulated_clocks(tsc_khz: Option<u64>, cpus: u32) -> String {
    let rate = tsc_khz.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
    let timer = if cpus == 1 { " nolapic_timer" } else { "" };
    rate + timer
}

/// The arguments, and the descriptors that must stay open for them.
/// `tsc_khz` is what the guest is told of its time stamp counter in emulation.
pub(crate) fn build(
    config: &VmConfig,
    accel: Chosen,
    tsc_khz: Option<u64>,
    fds: Inherited,
) -> (Vec<String>, Vec<OwnedFd>) {
    let mut cmdline = format!("{BASE_CMDLINE} maxcpus={}", config.cpus);
    let mut line = Line::default();
    line.add("-name", "cloister,debug-threads=on");
    for flag in ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-S"] {
        line.args.push(flag.into());
    }
    line.add("-sandbox", SANDBOX);
    line.add("-machine", format!("{MACHINE},memory-backend={RAM}"));
    match accel {
        Chosen::Kvm(device) => {
            let fd = line.keep(device);
            line.add("-add-fd", format!("fd={fd},set=0"));
            line.add("-accel", "kvm,device=/dev/fdset/0");
            line.add("-cpu", "host");
        }
        Chosen::Tcg { .. } => {
            let size = translated_code(config) / MIB;
            line.add("-accel", format!("tcg,thread=multi,tb-size={size}"));
            line.add("-cpu", TCG_CPU);
            cmdline.push_str(&emulated_clocks(tsc_khz, config.max_cpus));
        }
    }
    // All processors there can ever be are present and the guest starts with `cpus` of them (`maxcpus=` below): Linux
    // counts one that is plugged in later only under a hypervisor it knows, which emulation is not
    // (acpi_is_processor_usable in arch/x86/kernel/acpi/boot.c). One that is offline costs a sleeping thread.
    line.add("-smp", format!("cpus={},sockets=1,cores={}", config.max_cpus, config.max_cpus));
    line.add("-m", format!("size={}B,maxmem={}B", config.memory, config.max_memory));
    let memory = line.path(fds.memory);
    line.add(
        "-object",
        format!("memory-backend-file,id={RAM},size={}B,mem-path={memory},share=on", config.memory),
    );

    let firmware = line.path(fds.firmware);
    line.add("-bios", firmware);
    let kernel = line.path(fds.kernel);
    line.add("-kernel", kernel);
    if let Some(initrd) = fds.initrd {
        let initrd = line.path(initrd);
        line.add("-initrd", initrd);
    }
    line.add("-append", format!("{cmdline} {}", config.cmdline));

    let qmp = line.keep(fds.qmp);
    line.add("-chardev", format!("socket,id=qmp,fd={qmp}"));
    line.add("-mon", "chardev=qmp,mode=control");
    let console = line.keep(fds.console);
    line.add("-chardev", format!("socket,id=console,fd={console}"));
    line.add("-serial", "chardev:console");
    line.add("-device", "virtio-rng-pci,addr=1,disable-legacy=on");
    // Memory the guest has freed goes back to the host, in pieces of at least 128 KiB.
    cmdline.push_str(" page_reporting.page_reporting_order=5");
    line.add("-device", "virtio-balloon-pci,addr=3,disable-legacy=on,free-page-reporting=on");
    line.add("-device", format!("pcie-pci-bridge,id={BUS},addr=2"));
    match fds.vsock {
        Some(Frontend::VhostUser(socket)) => {
            let fd = line.keep(socket);
            line.add("-chardev", format!("socket,id={VSOCK},fd={fd}"));
            line.add("-device", format!("vhost-user-vsock-pci,id={VSOCK},bus={BUS},addr=1,chardev={VSOCK}"));
        }
        Some(Frontend::Vhost { fd, cid }) => {
            let fd = line.keep(fd);
            line.add(
                "-device",
                format!("vhost-vsock-pci,id={VSOCK},bus={BUS},addr=1,guest-cid={cid},vhostfd={fd}"),
            );
        }
        None => line.add("-incoming", "defer"),
    }
    (line.args, line.fds)
}

#[derive(Default)]
struct Line {
    args: Vec<String>,
    fds: Vec<OwnedFd>,
}

impl Line {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.args.push(option.into());
        self.args.push(value.into());
    }

    fn keep(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    fn path(&mut self, fd: OwnedFd) -> String {
        format!("/proc/self/fd/{}", self.keep(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn line(accel: Chosen) -> Vec<String> {
        let config = VmConfig::new("/run/x".into(), "/secret/kernel".into(), Some("/secret/initrd".into()));
        let vsock = Some(Frontend::VhostUser(null()));
        let fds = Inherited {
            firmware: null(),
            kernel: null(),
            initrd: Some(null()),
            memory: null(),
            qmp: null(),
            console: null(),
            vsock,
        };
        build(&config, accel, None, fds).0
    }

    #[test]
    fn no_path_of_the_host_is_on_the_command_line() {
        for arg in line(Chosen::Tcg { warning: None }) {
            let foreign = arg.split(['=', ',', ' ']).any(|word| {
                word.starts_with('/')
                    && !word.starts_with("/proc/self/fd/")
                    && !word.starts_with("/dev/fdset/")
            });
            assert!(!foreign, "{arg}");
        }
    }

    #[test]
    fn emulation_and_kvm_differ_in_accelerator_processor_and_its_clocks_only() {
        let strip = |args: Vec<String>| {
            let text = args.join(" ").replace(&emulated_clocks(None, 1), "");
            let mut words = Vec::new();
            let mut rest = text.split(' ');
            while let Some(word) = rest.next() {
                match word {
                    "-accel" | "-cpu" | "-add-fd" => drop(rest.next()),
                    _ => words.push(word.split("fd").next().unwrap_or("").to_owned()),
                }
            }
            words
        };
        assert_eq!(strip(line(Chosen::Tcg { warning: None })), strip(line(Chosen::Kvm(null()))));
    }

    #[test]
    fn the_machine_is_bare_and_sandboxed() {
        let args = line(Chosen::Tcg { warning: None });
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot", SANDBOX] {
            assert!(args.iter().any(|a| a == flag), "{flag}");
        }
        assert!(!args.iter().any(|a| a.contains("/dev/shm")));
    }
}
