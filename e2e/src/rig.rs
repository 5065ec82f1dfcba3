//! Pods as tests handle them: one containerd, one runtime handler, and everything removed and compared in the end.

mod container;
mod pod;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use container::{Container, LogLine};
pub use pod::Pod;

use crate::containerd::{Containerd, Handler, Version};
use crate::cri::{api, spec};
use crate::pod_images::{BUSYBOX, PAUSE};
use crate::traces::Traces;

/// How long anything that needs a microVM may take in emulation on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How soon nothing may be left of a removed pod.
const GONE: Duration = Duration::from_secs(5);

/// A lab and the handler that its pods use.
pub struct Rig {
    /// The containerd.
    pub lab: Containerd,
    /// The runtime handler under test.
    pub handler: Handler,
    counter: AtomicU32,
}

/// Runs one case in a lab of its own: whatever it leaves running is removed, and nothing may stay behind.
///
/// # Panics
/// When the case fails, after the lab's logs were printed, or when something is left behind.
pub fn run_case(version: Version, handler: Handler, images: &[&str], case: fn(&Rig) -> Result<()>) {
    let images = [&[PAUSE, BUSYBOX], images].concat();
    let rig = match Rig::start(version, handler, &images) {
        Ok(rig) => rig,
        Err(error) => fail(&format!("the lab does not start: {error:#}")),
    };
    let outcome = match catch_unwind(AssertUnwindSafe(|| case(&rig))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_default()),
    };
    let outcome = outcome.and_then(|()| rig.finish().map_err(|error| format!("{error:#}")));
    if let Err(reason) = outcome {
        rig.print_logs();
        fail(&reason);
    }
}

#[allow(clippy::panic, reason = "this is how a test fails")]
fn fail(reason: &str) -> ! {
    panic!("{reason}")
}

impl Rig {
    /// Starts a lab with these images.
    pub fn start(version: Version, handler: Handler, images: &[&str]) -> Result<Rig> {
        Ok(Self::of(Containerd::start(version, handler.needs_node(), images)?, handler))
    }

    /// Pods of a handler in a lab that is there.
    pub fn of(lab: Containerd, handler: Handler) -> Rig {
        Rig { lab, handler, counter: AtomicU32::new(0) }
    }

    /// A number not used before in this lab.
    fn next(&self) -> u32 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// The configuration of a new pod, for changing before [`Rig::run`].
    pub fn config(&self) -> api::PodSandboxConfig {
        let name = format!("pod-{}", self.next());
        let uid = format!("00000000-0000-4000-8000-{:012}", self.next());
        let cgroup = format!("{}/kubepods/pod{uid}", self.lab.cgroup());
        let logs = self.lab.root().join("logs").join(&name);
        spec::pod(&name, &uid, &cgroup, &logs.to_string_lossy())
    }

    /// Runs a pod of this configuration.
    pub fn run(&self, config: api::PodSandboxConfig) -> Result<Pod<'_>> {
        let request = api::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.name().to_owned(),
        };
        let id = self.lab.cri.run_pod_sandbox(request).context("RunPodSandbox")?.pod_sandbox_id;
        Ok(Pod { rig: self, id, config })
    }

    /// Runs an ordinary pod.
    pub fn pod(&self) -> Result<Pod<'_>> {
        self.run(self.config())
    }

    /// The kubelet's folder of one volume of a pod, made when missing; `kind` is for example `configmap`.
    pub fn volume(&self, pod: &api::PodSandboxConfig, kind: &str, name: &str) -> Result<std::path::PathBuf> {
        let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
        let folder = self
            .lab
            .root()
            .join("kubelet/pods")
            .join(uid)
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Removes every pod that is still known.
    pub fn remove_pods(&self) -> Result<()> {
        for pod in self.lab.cri.list_pod_sandbox(api::ListPodSandboxRequest::default())?.items {
            let stop = api::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.lab.cri.stop_pod_sandbox(stop).context("StopPodSandbox")?;
            let remove = api::RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.lab.cri.remove_pod_sandbox(remove).context("RemovePodSandbox")?;
        }
        Ok(())
    }

    /// Removes the pods and compares: nothing of them may be left.
    pub fn finish(&self) -> Result<()> {
        self.remove_pods()?;
        self.lab.collect_garbage()?;
        let left = Traces::settled(&self.lab, GONE)?;
        if !left.is_empty() {
            bail!("left behind: {left:#?}");
        }
        Ok(())
    }

    fn print_logs(&self) {
        for log in ["containerd.log", "node.log"] {
            eprintln!("--- the end of {log}\n{}", self.lab.log_tail(log, 60));
        }
        let consoles = self.lab.cell.run("sh", &["-c", "tail -n 30 /run/cloister/pods/*/*/console.log"]);
        if let Ok(text) = consoles {
            eprintln!("--- guest consoles\n{text}");
        }
        for process in self.lab.cell.processes().unwrap_or_default() {
            eprintln!("--- process {} of {}: {}", process.pid, process.parent, process.command);
        }
    }
}
