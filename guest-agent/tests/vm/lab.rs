//! A VM with the agent under test and a Debian root in it.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cloister_image::{Digest, ImageConfig};
use cloister_sandbox::spec::{self, Wishes};
use cloister_sandbox::{
    Container, Error, Exit, Io, Kernel, Layer, MachineConfig, PidNamespace, Process, Root, Sandbox, Scratch,
};
use cloister_vmm::{Accel, Host, User};

const MIB: u64 = 1 << 20;

/// The environment's value, or a file below the cache.
fn cached(variable: &str, path: &str) -> PathBuf {
    let cache = || {
        let home = PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
        let xdg = std::env::var_os("XDG_CACHE_HOME").map_or(home, PathBuf::from).join("cloister");
        std::env::var_os("CLOISTER_CACHE").map_or(xdg, PathBuf::from)
    };
    std::env::var_os(variable).map_or_else(|| cache().join(path), PathBuf::from)
}

/// The guest that `make guest` assembled.
fn kernel() -> Kernel {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/microvm");
    let folder = std::env::var_os("CLOISTER_KERNEL").map_or(default, PathBuf::from);
    let kernel = Kernel { vmlinux: folder.join("vmlinux"), initramfs: folder.join("initramfs") };
    assert!(
        kernel.vmlinux.exists() && kernel.initramfs.exists(),
        "{} has no guest: make guest",
        folder.display()
    );
    kernel
}

/// A Debian root as one EROFS file, made once from the image that `make images` assembled and kept in the target folder.
fn layer() -> std::fs::File {
    let image = cached("CLOISTER_TEST_IMAGES", "images");
    let demo = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("debian-demo");
    let image =
        std::fs::read_dir(&image).expect("make images").flatten().find(demo).expect("make images").path();
    let name = format!("{}.erofs", image.file_stem().unwrap().display());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        if !path.exists() {
            make(&image, &path);
        }
    });
    std::fs::File::open(path).unwrap()
}

fn make(image: &std::path::Path, path: &std::path::Path) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = r#"set -e
        mkdir root archive; tar -C archive -xf "$1"
        for layer in $(python3 -c 'import json; print(*json.load(open("archive/manifest.json"))[0]["Layers"])'); do
            tar -C root -xzf "archive/$layer"
        done
        printf '#!/nonexistent\n' >root/usr/bin/lost; printf 'text' >root/usr/bin/text
        chmod 755 root/usr/bin/lost; chmod 644 root/usr/bin/text
        "$2" --quiet layer root"#;
    let mkfs = cached("CLOISTER_MKFS_EROFS", "tools/erofs-utils-trixie/bin/mkfs.erofs");
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args([image, mkfs.as_path()]).current_dir(folder.path());
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::rename(folder.path().join("layer"), path).unwrap();
}

/// One VM.
pub struct Lab {
    pub sandbox: Sandbox,
    folder: tempfile::TempDir,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: u8,
    pub oom_killed: bool,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Clone, Default)]
pub struct Sink(pub Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Lab {
    pub async fn boot(privileged: bool) -> Self {
        Self::boot_with(|config| config.privileged = privileged).await
    }

    pub async fn boot_with(change: impl FnOnce(&mut MachineConfig)) -> Self {
        let folder = tempfile::Builder::new().prefix("agent").tempdir().unwrap();
        let host = Host::debian(
            cached("CLOISTER_VIRTIOFSD", "tools/virtiofsd-1.13.2/bin/virtiofsd"),
            Some(User { uid: 65534, gid: 65534 }),
        );
        let mut config = MachineConfig {
            host,
            folder: folder.path().to_owned(),
            kernel: kernel(),
            memory_bytes: 256 * MIB,
            max_memory_bytes: 1024 * MIB,
            cpus: 1,
            max_cpus: 1,
            netns: None,
            egress: None,
            privileged: false,
            accel: Accel::Auto,
            boot_deadline: Duration::from_secs(60),
        };
        change(&mut config);
        let sandbox = Sandbox::boot(&config).await.unwrap();
        Self { sandbox, folder }
    }

    /// Runs a container's process; gives it with what it writes.
    pub async fn start(
        &mut self,
        id: &str,
        user: &str,
        wishes: Wishes,
        stdin: Option<std::os::fd::OwnedFd>,
    ) -> Result<(Process, Sink, Sink), Error> {
        let container = Container { user: user.into(), ..self.container(id, &wishes) };
        self.start_container(container, wishes.terminal.then_some((24, 80)), stdin).await
    }

    /// A container of the Debian root.
    pub fn container(&self, id: &str, wishes: &Wishes) -> Container {
        Container {
            id: id.into(),
            root: Root::Layers {
                layers: vec![Layer { diff_id: Digest::of(id.as_bytes()), file: layer() }],
                scratch: Some(Scratch::nameless(64 * MIB, self.folder.path().to_owned())),
            },
            spec: spec::build(&ImageConfig::default(), wishes).unwrap(),
            user: String::new(),
            pid_namespace: PidNamespace::Own,
            pid_container: String::new(),
            block_devices: Vec::new(),
        }
    }

    /// Runs a container's process; gives it with what it writes.
    pub async fn start_container(
        &self,
        container: Container,
        terminal: Option<(u16, u16)>,
        stdin: Option<std::os::fd::OwnedFd>,
    ) -> Result<(Process, Sink, Sink), Error> {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let io = Io {
            stdin,
            stdout: Some(Box::new(stdout.clone())),
            stderr: Some(Box::new(stderr.clone())),
            terminal,
        };
        Ok((self.sandbox.run(container, io).await?, stdout, stderr))
    }

    /// Where a disk's file can be made.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Runs a container to its end.
    pub async fn run(&mut self, id: &str, user: &str, command: &[&str]) -> Result<Outcome, Error> {
        let wishes = wishes(command);
        let (process, stdout, stderr) = self.start(id, user, wishes, None).await?;
        Ok(outcome(process, &stdout, &stderr).await)
    }

    /// Runs one more process to its end.
    pub async fn exec(
        &self,
        container: &str,
        name: &str,
        user: &str,
        command: &[&str],
    ) -> Result<Outcome, Error> {
        self.exec_as(container, name, user, &wishes(command)).await
    }

    /// Runs one more process with further wishes to its end.
    pub async fn exec_wishes(&self, container: &str, name: &str, wishes: &Wishes) -> Result<Outcome, Error> {
        self.exec_as(container, name, "", wishes).await
    }

    async fn exec_as(
        &self,
        container: &str,
        name: &str,
        user: &str,
        wishes: &Wishes,
    ) -> Result<Outcome, Error> {
        let process = spec::exec_process(&ImageConfig::default(), wishes).unwrap();
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let io = Io {
            stdout: Some(Box::new(stdout.clone())),
            stderr: Some(Box::new(stderr.clone())),
            ..Io::default()
        };
        let json = serde_json::to_vec(&process).unwrap();
        let process = Process::exec(self.sandbox.agent(), container, name, json, user, io).await?;
        Ok(outcome(process, &stdout, &stderr).await)
    }
}

pub fn wishes(command: &[&str]) -> Wishes {
    let command = command.iter().map(ToString::to_string).collect();
    Wishes { command, hostname: "box".into(), ..Wishes::default() }
}

pub async fn outcome(process: Process, stdout: &Sink, stderr: &Sink) -> Outcome {
    let Exit { code, oom_killed } = process.wait().await.unwrap();
    process.drain().await;
    Outcome { code, oom_killed, stdout: stdout.text(), stderr: stderr.text() }
}

/// A descriptor that gives these bytes and then ends.
pub fn input(bytes: Vec<u8>) -> std::os::fd::OwnedFd {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut ours = ours;
        let _ = ours.write_all(&bytes);
        let _ = ours.shutdown(std::net::Shutdown::Write);
        let _ = ours.read(&mut [0]);
    });
    theirs.into()
}
