//! A VM under software emulation with our device in it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_vsock::{Config, Device, DialError};

use crate::cpio;

/// Patience with anything in the guest.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running VM. Dropping it ends it.
pub struct Machine {
    pub device: Device,
    pub dir: tempfile::TempDir,
    qemu: Child,
    qmp: BufReader<UnixStream>,
}

impl Machine {
    /// Boots, and returns at once: the guest is not up yet.
    pub fn start(config: Config) -> Self {
        Self::start_with(config, &[])
    }

    /// As [`start`](Self::start), with more QEMU arguments.
    pub fn start_with(mut config: Config, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        config.socket.get_or_insert_with(|| dir.path().join("vm.sock"));
        let (device, fd) = Device::pair(config).unwrap();
        let qmp = dir.path().join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                "q35,accel=tcg,smbus=off,sata=off,vmport=off,memory-backend=mem",
                "-cpu",
                "max",
                "-smp",
                "1",
            ])
            .args(["-bios", "/usr/share/qemu/qboot.rom", "-m", "256"])
            .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
            .args(["-nodefaults", "-no-user-config", "-nographic"])
            .args(["-append", "console=ttyS0 quiet panic=-1 reboot=t"])
            .args(["-chardev", &format!("socket,id=vsock0,fd={}", fd.as_raw_fd())])
            .args(["-device", "pcie-root-port,id=port0,slot=1", "-device"])
            .arg("vhost-user-vsock-pci,chardev=vsock0,id=vsock0,bus=port0")
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .args(["-serial", &format!("file:{}", dir.path().join("console").display())])
            .arg("-kernel")
            .arg(kernel())
            .arg("-initrd")
            .arg(initramfs())
            .args(more)
            .stdin(Stdio::null());
        let inherited = fd.as_raw_fd();
        // SAFETY: both calls are async-signal-safe. The thread that spawns is the test's own and waits for the VM.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::fcntl(inherited, libc::F_SETFD, 0);
                Ok(())
            });
        }
        let qemu = command.spawn().expect("qemu-system-x86_64 starts");
        drop(fd);
        let stream = wait_for("QEMU's monitor", || UnixStream::connect(&qmp).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut machine = Self { device, dir, qemu, qmp: BufReader::new(stream) };
        machine.read_qmp("QMP");
        machine.qmp("qmp_capabilities", "{}");
        machine
    }

    /// Boots, and waits for the guest's services.
    pub fn boot() -> Self {
        Self::boot_with(Config::default())
    }

    /// As [`boot`](Self::boot), with this configuration.
    pub fn boot_with(config: Config) -> Self {
        let machine = Self::start(config);
        drop(machine.dial_when_up(crate::wire::port::LAST));
        machine
    }

    /// Dials until the guest listens.
    pub fn dial_when_up(&self, port: u32) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.device.dial(port, deadline - Instant::now()) {
                Ok(stream) => return patient(stream),
                Err(DialError::Refused { .. }) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("{error}; console: {}", self.console()),
            }
        }
    }

    /// Dials a service that is known to be up.
    pub fn dial(&self, port: u32) -> UnixStream {
        match self.device.dial(port, PATIENCE) {
            Ok(stream) => patient(stream),
            Err(error) => panic!("{error}; console: {}", self.console()),
        }
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// One monitor command.
    pub fn qmp(&mut self, command: &str, arguments: &str) {
        let line = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        self.read_qmp("\"return\"");
    }

    /// Reads monitor lines up to one that contains `what`.
    pub fn read_qmp(&mut self, what: &str) {
        loop {
            let mut line = String::new();
            assert!(self.qmp.read_line(&mut line).unwrap() > 0, "QEMU has gone");
            assert!(!line.contains("\"error\""), "{line}");
            if line.contains(what) {
                return;
            }
        }
    }

    /// Kills QEMU as a crash would.
    pub fn crash(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Gives a stream deadlines, so that a test fails instead of hanging.
pub fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Polls until there is something.
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The newest guest kernel `make kernel` has left in the cache.
fn kernel() -> PathBuf {
    let cache = std::env::var_os("CLOISTER_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        base.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache"))
            .join("cloister")
    });
    let folders = std::fs::read_dir(cache.join("kernel")).into_iter().flatten().flatten();
    let kernels = folders.map(|entry| entry.path().join("vmlinux")).filter(|path| path.is_file());
    kernels
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
        .expect("a guest kernel in the cache: run `make kernel`")
}

/// The initramfs with the guest program, built when its sources are newer. Every test is a process of its own, hence the file.
fn initramfs() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vsock-guest.cpio");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let newest =
        ["guest.rs", "wire.rs", "cpio.rs"].iter().filter_map(|name| changed(&sources.join(name))).max();
    if changed(&built) > newest {
        return built;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = dir.path().join("init");
    // Not through cargo: a static program needs flags that must not touch anything else, and this one needs std only.
    let compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args(["-C", "panic=abort", "-o"])
        .arg(&program)
        .arg(sources.join("guest.rs"))
        .output()
        .expect("rustc runs");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    let archive = dir.path().join("initramfs");
    std::fs::write(&archive, cpio::pack(&std::fs::read(&program).unwrap())).unwrap();
    std::fs::rename(&archive, &built).unwrap();
    built
}
