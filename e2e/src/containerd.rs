//! A private containerd from Debian's packages, in a [`Cell`] of its own, with everything pods need around it.

pub mod config;
pub mod registry;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use config::Subnets;

use crate::cell::{Cell, wait_for};
use crate::cri::{Cri, api};
use crate::lab::{cache, target_dir};
use crate::{node, pod_images, sweep};

/// The versions the shim is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 1.7, from Debian trixie: task service v2, pause containers.
    V1_7,
    /// 2.1, from Debian sid: task service v3, pause containers or the sandbox service.
    V2_1,
}

/// The runtime handlers that every lab's containerd knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// The peer: ordinary containers.
    Runc,
    /// Ordinary containers whose layers `cloister-node` mounts.
    RuncLayers,
    /// MicroVMs with the layer snapshotter.
    Cloister,
    /// MicroVMs through the sandbox service; containerd 2.x only.
    CloisterSandbox,
    /// MicroVMs from images that containerd's overlayfs snapshotter unpacked.
    CloisterOverlayfs,
}

impl Handler {
    /// The name in a pod's `runtimeClassName`.
    pub fn name(self) -> &'static str {
        match self {
            Handler::Runc => "runc",
            Handler::RuncLayers => "runc-layers",
            Handler::Cloister => "cloister",
            Handler::CloisterSandbox => "cloister-sandbox",
            Handler::CloisterOverlayfs => "cloister-overlayfs",
        }
    }

    /// Whether pods are microVMs.
    pub fn is_microvm(self) -> bool {
        !matches!(self, Handler::Runc | Handler::RuncLayers)
    }

    /// Whether images are unpacked by `cloister-node`.
    pub fn needs_node(self) -> bool {
        self != Handler::Runc
    }
}

/// How long a daemon may take to start or to end.
const DAEMON: Duration = Duration::from_secs(30);

/// A running containerd and the cell around it; dropping it ends and removes everything.
pub struct Containerd {
    /// The namespaces that everything runs in.
    pub cell: Cell,
    /// The client.
    pub cri: Cri,
    version: Version,
    daemon: Mutex<Option<Child>>,
    node: Mutex<Option<Child>>,
    id: String,
    root: tempfile::TempDir,
}

impl Containerd {
    /// Starts containerd, and `cloister-node` when microVMs are wanted, and imports these images.
    pub fn start(version: Version, microvms: bool, images: &[&str]) -> Result<Containerd> {
        Self::start_on(version, microvms, images, Subnets::default())
    }

    /// The same with other addresses for pods.
    pub fn start_on(
        version: Version,
        microvms: bool,
        images: &[&str],
        subnets: Subnets,
    ) -> Result<Containerd> {
        let lab = Self::stopped(version)?;
        let with_node = microvms && node::binary().exists();
        config::write(lab.root(), version, with_node, subnets)?;
        node::configure(lab.root(), &node::Shim::default())?;
        if with_node {
            lab.start_node()?;
        }
        lab.start_daemon()?;
        lab.import(images)?;
        Ok(lab)
    }

    /// A lab in which nothing runs and nothing is configured.
    pub fn stopped(version: Version) -> Result<Containerd> {
        sweep::dead_labs()?;
        let root = tempfile::Builder::new().prefix(sweep::PREFIX).tempdir()?;
        sweep::claim(root.path())?;
        let id = root.path().file_name().map(|n| n.to_string_lossy().into_owned()).context("no name")?;
        for folder in ["logs", "kubelet", "cni", "node"] {
            fs::create_dir(root.path().join(folder))?;
        }
        Ok(Containerd {
            cell: Cell::new()?,
            cri: Cri::new(&root.path().join("containerd.sock"))?,
            version,
            daemon: Mutex::default(),
            node: Mutex::default(),
            id,
            root,
        })
    }

    /// Imports these images.
    pub fn import(&self, images: &[&str]) -> Result<()> {
        for archive in pod_images::archives(images)? {
            self.ctr(&["images", "import", &archive.to_string_lossy()])?;
        }
        for name in images {
            wait_for(&format!("image {name}"), DAEMON, || Ok(self.image(name)?.map(drop)))?;
        }
        Ok(())
    }

    /// The lab's folder on disk.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The version of this containerd.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The cgroup that every pod of this lab is put below.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.id)
    }

    /// Starts the daemon and waits until it is ready for pods.
    pub fn start_daemon(&self) -> Result<()> {
        let mut command = Command::new(programs(self.version)?.join("containerd"));
        command
            .arg("--config")
            .arg(self.root().join("containerd.toml"))
            .stdin(Stdio::null())
            .env("PATH", path(&[programs(self.version)?, lab_sbin()?, target_dir()])?)
            // It would come before the configuration's.
            .env_remove("CLOISTER_KERNEL")
            .envs(node::environment(self.root()));
        let child = self.spawn_logged(&mut command, "containerd.log")?;
        let mut slot = lock(&self.daemon);
        *slot = Some(child);
        wait_for("containerd", DAEMON, || {
            if let Some(status) = slot.as_mut().and_then(|child| child.try_wait().transpose()) {
                bail!("containerd ended: {}\n{}", status?, self.log_tail("containerd.log", 20));
            }
            Ok(self.cri.ready().ok())
        })
        .with_context(|| self.log_tail("containerd.log", 20))
    }

    /// The text of a systemd unit that is this containerd, with no shim of ours in its PATH.
    pub fn unit(&self) -> Result<String> {
        let (shim, config) = (self.root().join("config.toml"), self.root().join("containerd.toml"));
        let environment = format!("Environment=CLOISTER_CONFIG={}\n", shim.display());
        self.service(&environment, &format!(" --config {}", config.display()))
    }

    /// The same for a containerd and a shim whose files are where they are by default.
    pub fn ordinary_unit(&self) -> Result<String> {
        self.service("", "")
    }

    fn service(&self, environment: &str, arguments: &str) -> Result<String> {
        let programs = programs(self.version)?;
        let path = path(&[programs.clone(), lab_sbin()?])?;
        let log = self.root().join("containerd.log");
        Ok(format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType=notify\nKillMode=process\nEnvironment=PATH={}\n{environment}\
             ExecStart={}{arguments}\nStandardOutput=append:{log}\nStandardError=append:{log}\n",
            path.to_string_lossy(),
            programs.join("containerd").display(),
            log = log.display(),
        ))
    }

    fn spawn_logged(&self, command: &mut Command, log: &str) -> Result<Child> {
        let file = File::options().create(true).append(true).open(self.root().join(log))?;
        command.stdout(file.try_clone()?).stderr(file);
        self.cell.spawn(command)
    }

    /// Starts `cloister-node`, which has to be there before containerd asks it.
    pub fn start_node(&self) -> Result<()> {
        let mut command = node::command(self.root())?;
        command.stdin(Stdio::null());
        let child = self.spawn_logged(&mut command, "node.log")?;
        *lock(&self.node) = Some(child);
        // Its metrics come last: whoever connects to the first socket may have to wait for an answer.
        let mut sockets = vec![node::socket(self.root())];
        if !node::serves_elsewhere(self.root()) {
            sockets.push(node::metrics(self.root()));
        }
        let answers = |socket| std::os::unix::net::UnixStream::connect(socket).is_ok();
        wait_for("cloister-node", DAEMON, || Ok(sockets.iter().all(answers).then_some(())))
            .with_context(|| self.log_tail("node.log", 20))
    }

    /// Starts `cloister-node` on a socket that somebody else holds, as systemd does.
    pub fn start_node_on(&self, socket: &std::os::unix::net::UnixListener) -> Result<()> {
        let direct = node::command(self.root())?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"])
            .arg(direct.get_program())
            .args(direct.get_args())
            .stdin(std::os::fd::OwnedFd::from(socket.try_clone()?));
        *lock(&self.node) = Some(self.spawn_logged(&mut command, "node.log")?);
        Ok(())
    }

    /// Ends the daemon, kindly or with `kill -9`; pods go on.
    pub fn stop_daemon(&self, kill: bool) -> Result<()> {
        stop(&self.daemon, kill)
    }

    /// Ends `cloister-node`, kindly or with `kill -9`.
    pub fn stop_node(&self, kill: bool) -> Result<()> {
        stop(&self.node, kill)
    }

    /// The host's number of the daemon's process.
    pub fn daemon_pid(&self) -> Option<u32> {
        lock(&self.daemon).as_ref().map(Child::id)
    }

    /// The host's number of `cloister-node`'s process.
    pub fn node_pid(&self) -> Option<u32> {
        lock(&self.node).as_ref().map(Child::id)
    }

    /// Runs containerd's own command-line client in the namespace of the CRI.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let program = programs(self.version)?.join("ctr");
        let socket = self.root().join("containerd.sock");
        let socket = socket.to_string_lossy();
        self.cell.run(&program.to_string_lossy(), &[&["-a", &socket, "-n", "k8s.io"], args].concat())
    }

    /// Has containerd collect its garbage. What is removed while it does so by itself, it forgets until the next time.
    pub fn collect_garbage(&self) -> Result<()> {
        let lease = self.ctr(&["leases", "create"])?;
        self.ctr(&["leases", "delete", "--sync", lease.trim()]).map(drop)
    }

    /// The image's ID in the CRI, when it is known there.
    pub fn image(&self, name: &str) -> Result<Option<api::Image>> {
        let spec = api::ImageSpec { image: name.to_owned(), ..api::ImageSpec::default() };
        let request = api::ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(self.cri.image_status(request)?.image)
    }

    /// The last lines of one of the lab's logs.
    pub fn log_tail(&self, log: &str, lines: usize) -> String {
        let bytes = fs::read(self.root().join(log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for (name, child) in [("containerd", &self.daemon), ("cloister-node", &self.node)] {
            if let Err(error) = stop(child, true) {
                eprintln!("{name}: {error:#}");
            }
        }
        self.cell.end();
        sweep::cgroups(&self.id);
    }
}

/// Ends a process, kindly or with `kill -9`, and waits for it.
pub(crate) fn stop(slot: &Mutex<Option<Child>>, kill: bool) -> Result<()> {
    let Some(mut child) = lock(slot).take() else { return Ok(()) };
    if kill {
        child.kill()?;
    } else if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    wait_for("the end of a daemon", DAEMON, || Ok(child.try_wait()?)).map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where `make setup` unpacked a version's programs.
fn programs(version: Version) -> Result<PathBuf> {
    let name = match version {
        Version::V1_7 => "containerd-1.7",
        Version::V2_1 => "containerd-2.1",
    };
    let folder = cache()?.join("tools").join(name).join("usr/bin");
    anyhow::ensure!(folder.exists(), "{} is missing: run make setup", folder.display());
    Ok(folder)
}

fn lab_sbin() -> Result<PathBuf> {
    Ok(pod_images::lab_program("usr/sbin/runc")?.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// `PATH` with these folders first.
fn path(first: &[PathBuf]) -> Result<std::ffi::OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(first.iter().cloned().chain(std::env::split_paths(&rest)))?)
}
