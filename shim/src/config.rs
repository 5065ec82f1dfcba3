//! `/etc/cloister/config.toml`: what a node's administrator may say. Every key is optional.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cloister_builder::Bounds;
use cloister_sandbox::{Kernel, OVERHEAD, memory_for, programs};
use cloister_vmm::{Accel, Host, MEMORY_STEP, MIB};
use serde::Deserialize;

/// Where the file is unless `CLOISTER_CONFIG` names another.
const PATH: &str = "/etc/cloister/config.toml";
/// Where packages put the guest's kernel.
const KERNELS: [&str; 2] = ["/usr/local/share/cloister/kernel", "/usr/share/cloister/kernel"];

/// Bytes of `run`, so that a socket in the folder of a pod, whose id has 64 digits, has no longer path than the kernel takes
/// (`sun_path` of unix(7), less its end).
const LONGEST_RUN: usize = 107 - "/pods/k8s.io/".len() - 64 - "/builder.sock".len();

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder with `vmlinux` and `initramfs`.
    kernel: Option<PathBuf>,
    qemu: Option<PathBuf>,
    firmware: Option<PathBuf>,
    virtiofsd: Option<PathBuf>,
    /// `auto`, `kvm` or `tcg`.
    accel: Accel,
    /// Folder of the pods' state.
    pub run: PathBuf,
    /// MiB of memory of a pod whose containers say nothing.
    default_memory: u64,
    /// MiB of memory that the guest's kernel and agent take, on top of the containers'.
    overhead: u64,
    /// MiB of memory that a pod may grow to.
    max_memory: u64,
    /// Processors of a pod whose containers say nothing.
    default_cpus: u32,
    /// Processors that a pod may grow to; 0 for those of the node.
    max_cpus: u32,
    /// MiB a container may write to its root filesystem.
    scratch: u64,
    /// MiB of an emptyDir volume that has no limit of its own.
    empty_dir: u64,
    /// Folder of disks that live as long as a pod.
    pub disks: PathBuf,
    /// What the disks of all build caches may take.
    pub caches: Bounds,
    /// Seconds a guest may take to boot.
    pub boot_seconds: u64,
    /// Machines that boot at the same time on this node; 0 for as many as it has processors.
    boots: usize,
    /// What is logged.
    pub log: Log,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter in the notation of `RUST_LOG`. Read again on SIGUSR1.
    pub level: String,
    /// JSON documents in place of text.
    pub json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), json: false }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: None,
            qemu: None,
            firmware: None,
            virtiofsd: None,
            accel: Accel::Auto,
            run: "/run/cloister".into(),
            default_memory: 512,
            overhead: OVERHEAD / MIB,
            max_memory: 8192,
            default_cpus: 1,
            max_cpus: 0,
            scratch: 16 << 10,
            empty_dir: 8 << 10,
            disks: "/var/lib/cloister/disks".into(),
            caches: Bounds::default(),
            boot_seconds: 60,
            boots: 0,
            log: Log::default(),
        }
    }
}

impl Config {
    /// Reads the file; a missing one is as good as an empty one.
    pub fn load() -> Result<Self> {
        let path = std::env::var_os("CLOISTER_CONFIG").map_or_else(|| PathBuf::from(PATH), PathBuf::from);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).with_context(|| format!("cannot use {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        if config.default_memory == 0 || config.overhead == 0 || config.default_cpus == 0 {
            bail!("default_memory, overhead and default_cpus can't be 0");
        }
        if config.run.as_os_str().len() > LONGEST_RUN {
            bail!(
                "run = {:?} is too long for the sockets below it: at most {LONGEST_RUN} bytes",
                config.run.display()
            );
        }
        Ok(config)
    }

    /// The guest's kernel.
    pub fn kernel(&self) -> Result<Kernel> {
        let named = std::env::var_os("CLOISTER_KERNEL").map(PathBuf::from);
        let found = programs::beside("share/cloister/kernel").into_iter().chain(KERNELS.map(PathBuf::from));
        let folders = named.into_iter().chain(self.kernel.clone()).chain(found);
        for folder in folders {
            let kernel = Kernel { vmlinux: folder.join("vmlinux"), initramfs: folder.join("initramfs") };
            if kernel.vmlinux.is_file() && kernel.initramfs.is_file() {
                return Ok(kernel);
            }
        }
        bail!("no guest kernel found: name a folder with vmlinux and initramfs as `kernel` in {PATH}")
    }

    /// The programs of the node.
    pub fn host(&self) -> Result<Host> {
        let pick = |own: &Option<PathBuf>, found: fn() -> Option<PathBuf>| own.clone().or_else(found);
        let missing = |what: &str| format!("{what} is not installed; name it in {PATH}");
        Ok(Host {
            qemu: pick(&self.qemu, programs::qemu).with_context(|| missing("QEMU"))?,
            firmware: pick(&self.firmware, programs::firmware)
                .with_context(|| missing("QEMU's firmware qboot.rom"))?,
            // Needed once something is shared; its absence is an error then.
            virtiofsd: pick(&self.virtiofsd, programs::virtiofsd).unwrap_or_else(|| "virtiofsd".into()),
            // A pod's network is its own.
            passt: None,
            user: programs::user(),
        })
    }

    /// Hardware virtualisation or emulation.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Bytes of memory for containers that may use `limits` bytes; `None` when they say nothing.
    pub fn memory(&self, limits: Option<u64>) -> u64 {
        memory_for(limits.unwrap_or(self.default_memory * MIB), self.overhead * MIB)
    }

    /// Bytes of memory a pod may grow to.
    pub fn max_memory(&self) -> u64 {
        (self.max_memory * MIB).div_ceil(MEMORY_STEP) * MEMORY_STEP
    }

    /// Bytes of memory that containers without a limit are counted with.
    pub fn default_memory(&self) -> u64 {
        self.default_memory * MIB
    }

    /// Processors for containers that may use `millis` thousandths of one; `None` when they say nothing.
    pub fn cpus(&self, millis: Option<u64>) -> u32 {
        let wanted = millis
            .map_or(self.default_cpus, |millis| u32::try_from(millis.div_ceil(1000)).unwrap_or(u32::MAX));
        wanted.clamp(1, self.max_cpus())
    }

    /// Processors a pod may grow to.
    pub fn max_cpus(&self) -> u32 {
        let node = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = if self.max_cpus == 0 { u32::try_from(node).unwrap_or(1) } else { self.max_cpus };
        most.clamp(1, 255)
    }

    /// Bytes a container may write to its root filesystem.
    pub fn scratch(&self) -> u64 {
        self.scratch * MIB
    }

    /// Bytes of an emptyDir volume without a limit.
    pub fn empty_dir(&self) -> u64 {
        self.empty_dir * MIB
    }

    /// How many machines may boot at the same time.
    pub fn boots(&self) -> usize {
        match self.boots {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            some => some,
        }
    }

    /// Where the places of those that boot are.
    pub fn booting(&self) -> PathBuf {
        self.run.join("booting")
    }

    /// The folder of one pod's state.
    pub fn folder(&self, namespace: &str, pod: &str) -> PathBuf {
        self.run.join("pods").join(namespace).join(pod)
    }

    /// Where a pod that ends leaves its last figures.
    pub fn last_page(&self, namespace: &str, pod: &str) -> PathBuf {
        self.run.join("ended").join(format!("{namespace}.{pod}"))
    }
}

/// Whether a name may be part of a path.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 128
        && Path::new(name).components().count() == 1
        && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.run, Path::new("/run/cloister"));
        // 512 MiB, a 48th of it and 64 MiB, in steps of 2 MiB.
        assert_eq!(config.memory(None), 588 * MIB);
        assert_eq!(config.log, Log::default());
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        assert!(Config::parse("default_memmory = 3").unwrap_err().to_string().contains("default_memmory"));
        assert!(Config::parse("default_memory = 0").is_err());
    }

    #[test]
    fn build_caches_have_bounds() {
        assert_eq!(Config::parse("").unwrap().caches, Bounds::default());
        let config = Config::parse("[caches]\ndisks = 3\nsize = 4096").unwrap();
        assert_eq!(config.caches, Bounds::new(3, 4 << 30));
    }

    #[test]
    fn sizes_are_the_limits_and_the_overhead() {
        let config =
            Config::parse("overhead = 32\nmax_cpus = 4\n[log]\nlevel = \"debug\"\njson = true").unwrap();
        assert_eq!(config.memory(Some(96 * MIB + 1)), 132 * MIB);
        assert_eq!((config.cpus(Some(1)), config.cpus(Some(1001)), config.cpus(Some(90_000))), (1, 2, 4));
        assert!(config.log.json);
    }

    #[test]
    fn a_folder_that_is_too_long_for_sockets_is_refused_at_once() {
        let run = |bytes: usize| Config::parse(&format!("run = \"/{}\"", "r".repeat(bytes - 1)));
        let config = run(LONGEST_RUN).unwrap();
        let socket = cloister_builder::pod::socket(&config.folder("k8s.io", &"a".repeat(64)));
        let folder = tempfile::tempdir().unwrap();
        // As long as this one is, it binds; the kernel refuses one more.
        let same =
            folder.path().join("s".repeat(socket.as_os_str().len() - folder.path().as_os_str().len() - 1));
        std::os::unix::net::UnixListener::bind(&same).unwrap();
        assert!(std::os::unix::net::UnixListener::bind(format!("{}s", same.display())).is_err());
        assert!(run(LONGEST_RUN + 1).unwrap_err().to_string().contains("at most 17 bytes"));
    }

    #[test]
    fn names_never_leave_their_folder() {
        assert!(is_name("k8s.io") && !is_name("..") && !is_name("a/b") && !is_name(""));
    }
}
