//! The builder in a real microVM: how fast it is ready, what it says when it does not come up, what stays on its disk.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cloister_builder::{
    self as builder, Bounds, Builder, Caches, Error, ImageSource, Names, Settings, State,
};
use cloister_image::{Image, Silent, Store};
use cloister_sandbox::{Agent, Io, Kernel, MachineConfig, OVERHEAD, Process, memory_for, programs};
use cloister_vmm::{Accel, Host};

const MIB: u64 = 1 << 20;

/// A store with the builder image, and a folder for a machine.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("clbuild-").tempdir().unwrap() }
    }

    fn image(&self) -> Image {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/builder-image.sh");
        let made = Command::new(script).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let archive = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let store = Store::open(self.folder.path().join("store")).unwrap();
        builder::load(&store, &ImageSource::Archive(archive), &Silent).unwrap()
    }

    fn settings(&self, memory_bytes: u64, state: State) -> Settings {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/microvm");
        let kernel = std::env::var_os("CLOISTER_KERNEL").map_or(default, PathBuf::from);
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let memory = memory_for(memory_bytes, OVERHEAD);
        let machine = MachineConfig {
            host: Host {
                qemu: programs::qemu().unwrap(),
                firmware: programs::firmware().unwrap(),
                virtiofsd: PathBuf::new(),
                passt: None,
                user: programs::user(),
            },
            folder,
            kernel: Kernel { vmlinux: kernel.join("vmlinux"), initramfs: kernel.join("initramfs") },
            memory_bytes: memory,
            max_memory_bytes: memory,
            cpus: 1,
            max_cpus: 1,
            privileged: true,
            netns: None,
            egress: None,
            accel: Accel::Auto,
            boot_deadline: Duration::from_secs(60),
        };
        let deadline = Duration::from_secs(60);
        Settings { machine, memory_bytes, state, names: Names::None, deadline }
    }

    fn scratch(&self) -> State {
        State::Scratch(4 << 30, self.folder.path().to_owned())
    }
}

/// Runs a command beside buildkitd, for what no client asks.
async fn exec(builder: &Builder, name: &str, script: &str) -> u8 {
    let (agent, _) = Agent::connect(builder.dialer(), Duration::from_secs(5)).await.unwrap();
    let process = format!(
        r#"{{"user":{{"uid":0,"gid":0}},"args":["sh","-c",{script:?}],"env":["PATH=/usr/bin:/bin"],"cwd":"/"}}"#
    );
    let io = Io { stderr: Some(Box::new(std::io::stderr())), ..Io::default() };
    let running =
        Process::exec(&agent, builder::CONTAINER, name, process.into_bytes(), "", io).await.unwrap();
    let code = running.wait().await.unwrap().code;
    running.drain().await;
    code
}

#[tokio::test]
async fn buildkitd_is_ready_and_listens_on_its_socket_only() {
    let (lab, begun) = (Lab::new(), Instant::now());
    let builder = Builder::start(lab.settings(512 * MIB, lab.scratch()), lab.image()).await.unwrap();
    let timings = builder.timings();
    println!("boot {:?}, start {:?}, ready {:?}", timings.boot, timings.start, timings.ready);
    drop(builder.connect().await.unwrap());
    assert_eq!(exec(&builder, "a", "grep -q ' /var/lib/buildkit ext4 ' /proc/mounts").await, 0);
    // Listening sockets of TCP, state 0A.
    assert_eq!(exec(&builder, "b", "cat /proc/net/tcp /proc/net/tcp6 | grep -q ' 0A '").await, 1);
    let workers = "buildctl --addr unix:///run/buildkit/buildkitd.sock debug workers -v | grep -q overlayfs";
    assert_eq!(exec(&builder, "c", workers).await, 0);
    assert_eq!(exec(&builder, "d", "grep -q memory /sys/fs/cgroup/cgroup.subtree_control").await, 0);
    assert_eq!(builder.out_of_memory(begun).await, None);
    builder.stop().await;
}

#[tokio::test]
async fn a_buildkitd_that_does_not_come_up_says_why() {
    let lab = Lab::new();
    // The folder of its worker is a file.
    let caches = Caches::new(lab.folder.path().join("cache"), 256 * MIB, Bounds::default());
    let first = Builder::start(lab.settings(512 * MIB, State::Cache(caches.take("k").unwrap())), lab.image());
    let first = first.await.unwrap();
    let spoil = "rm -rf /var/lib/buildkit/* && echo spoilt >/var/lib/buildkit/runc-overlayfs";
    assert_eq!(exec(&first, "spoil", spoil).await, 0);
    first.stop().await;
    let disk = caches.take("k").unwrap();
    assert!(disk.is_warm());
    let error = Builder::start(lab.settings(512 * MIB, State::Cache(disk)), lab.image()).await.err().unwrap();
    assert!(matches!(&error, Error::NotReady { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("ended with code 1") && text.contains("runc-overlayfs: not a directory"), "{text}");
}

#[tokio::test]
async fn memory_that_runs_out_is_told_with_the_peak() {
    let (lab, begun) = (Lab::new(), Instant::now());
    let memory = 192 * MIB;
    let builder = Builder::start(lab.settings(memory, lab.scratch()), lab.image()).await.unwrap();
    // Each takes its memory at once; together they take more than there is.
    let hog =
        "for i in 1 2 3 4 5 6; do tail -c 60m /dev/zero >/dev/null & done; timeout 15 sh -c wait; sleep 5";
    exec(&builder, "hog", hog).await;
    let told = builder.out_of_memory(begun).await.unwrap();
    assert_eq!(builder.out_of_memory(Instant::now() + Duration::from_secs(9)).await, None);
    assert!(told.limit == memory && told.peak > memory / 2 && told.peak <= memory, "{told:?}");
    builder.stop().await;
}
