//! What the VM tests share: the kernel from the cache, a guest made of one static program, and a VM around it.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cloister_vmm::{Error, Host, Qemu, Result, User, VmConfig, Vmm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const NOBODY: User = User { uid: 65534, gid: 65534 };
pub const LIMIT: Duration = Duration::from_secs(30);

pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let xdg = || std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    std::env::var_os("CLOISTER_CACHE").map_or_else(|| xdg().join("cloister"), PathBuf::from)
}

pub fn kernel() -> PathBuf {
    let kernel = cache().join("kernel/default-x86_64/vmlinux");
    assert!(kernel.exists(), "{} is missing: run kernel/build.sh", kernel.display());
    fs::canonicalize(kernel).expect("the kernel resolves")
}

pub fn host() -> Host {
    let debian = Host::debian(cache().join("tools/virtiofsd-1.13.2/bin/virtiofsd"), Some(NOBODY));
    Host { passt: Some(cache().join("tools/passt-trixie/bin/passt")), ..debian }
}

/// An initramfs with `init.rs` as its only file, built once per test process and cached by name.
pub fn initrd() -> PathBuf {
    static INITRD: OnceLock<PathBuf> = OnceLock::new();
    INITRD.get_or_init(build_initrd).clone()
}

fn build_initrd() -> PathBuf {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/init.rs");
    let done = out.join("test-initramfs");
    let modified = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    if modified(&done) > modified(&source) {
        return done;
    }
    // Tests run in processes of their own: each builds under its own name, the last one wins.
    let program = out.join(format!("init-{}", std::process::id()));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition=2021", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .args([&program, &source])
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the test guest does not compile");
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, &fs::read(&program).expect("the guest is readable"));
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    fs::remove_file(&program).expect("the guest is removable");
    let part = out.join(format!("initramfs-{}", std::process::id()));
    fs::write(&part, archive).expect("the initramfs is writable");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o644)).expect("mode is set");
    fs::rename(&part, &done).expect("the initramfs is published");
    done
}

/// One file of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst in Linux).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let links = u32::from(mode != 0);
    let size = u32::try_from(content.len()).expect("a small file");
    let name_len = u32::try_from(name.len() + 1).expect("a short name");
    archive.extend_from_slice(b"070701");
    for field in [links, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_len, 0] {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A VM and the folder it lives in.
pub struct Guest {
    pub vm: Qemu,
    pub dir: tempfile::TempDir,
}

pub fn config(dir: &Path) -> VmConfig {
    VmConfig::new(dir.to_owned(), kernel(), Some(initrd()))
}

impl Guest {
    /// Boots and waits until the guest answers.
    pub async fn boot() -> Self {
        Self::boot_with(|_| ()).await
    }

    /// As `boot`, with another configuration.
    pub async fn boot_with(change: impl FnOnce(&mut VmConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = config(dir.path());
        change(&mut config);
        let vm = Qemu::create(&host(), config).await.expect("the VM is made");
        vm.start().await.expect("the VM starts");
        let guest = Self { vm, dir };
        let began = Instant::now();
        if let Err(e) = guest.vm.dial_until_ready(1024, LIMIT).await {
            let console = fs::read_to_string(guest.vm.console()).unwrap_or_default();
            panic!("no answer after {:?}: {e}\n{console}", began.elapsed());
        }
        guest
    }

    pub async fn ask(&self, command: &str) -> Result<String> {
        ask(&self.vm, command).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Asks until the answer holds `part`.
    pub async fn until(&self, command: &str, part: &str) -> String {
        let began = Instant::now();
        loop {
            let answer = self.ask(command).await;
            match answer {
                Ok(text) if text.contains(part) => return text,
                other if began.elapsed() > LIMIT => panic!("{command} never said {part:?}: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// The name of the block device with a serial.
    pub async fn disk(&self, serial: &str) -> String {
        let began = Instant::now();
        while began.elapsed() < LIMIT {
            for name in self.ask("ls /sys/block").await.unwrap_or_default().lines() {
                let found = self.ask(&format!("cat /sys/block/{name}/serial")).await;
                if found.is_ok_and(|s| s.trim() == serial)
                    && self.ask(&format!("read /dev/{name} 0 1")).await.is_ok()
                {
                    return format!("/dev/{name}");
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no disk with serial {serial}");
    }
}

pub async fn ask(vm: &Qemu, command: &str) -> Result<Vec<u8>> {
    let io = |source| Error::Os { what: "talk to the test guest", source };
    let mut stream = vm.dial(1024, LIMIT).await?;
    stream.write_all(format!("{command}\n").as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .map_err(|_| Error::Timeout { what: command.into(), limit: LIMIT })?
        .map_err(io)?;
    match answer.strip_prefix(b"ok\n") {
        Some(rest) => Ok(rest.to_vec()),
        None => Err(io(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))),
    }
}

/// Processes of ours whose command line holds `word`.
pub fn children(word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(word) {
            found.push(pid);
        }
    }
    found
}

/// The one process with this on its command line; while it starts there may be none, or a helper of its own.
pub async fn only_child(word: &str) -> u32 {
    let began = Instant::now();
    loop {
        match children(word)[..] {
            [pid] => return pid,
            ref other => assert!(began.elapsed() < LIMIT, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
