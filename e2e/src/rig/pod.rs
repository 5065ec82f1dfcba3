//! One pod.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Container, Rig};
use crate::cri::api;
use crate::cri::spec;
use crate::cri::stream::Forwarded;
use crate::pod_images::BUSYBOX;

/// A pod that was run; it stays until it is removed here or by the rig's end.
pub struct Pod<'a> {
    /// The lab it is in.
    pub rig: &'a Rig,
    /// The CRI's ID.
    pub id: String,
    /// What it was run with; the kubelet repeats it with every container.
    pub config: api::PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Creates a container without starting it.
    pub fn create(&self, config: api::ContainerConfig) -> Result<Container<'a>> {
        let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let log = std::path::Path::new(&self.config.log_directory).join(&config.log_path);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self
            .rig
            .lab
            .cri
            .create_container(request)
            .with_context(|| format!("CreateContainer {name}"))?
            .container_id;
        Ok(Container { rig: self.rig, id, log })
    }

    /// Creates and starts a container.
    pub fn start(&self, config: api::ContainerConfig) -> Result<Container<'a>> {
        let container = self.create(config)?;
        container.start()?;
        Ok(container)
    }

    /// The configuration of a busybox container that runs a shell script.
    pub fn shell(&self, script: &str) -> api::ContainerConfig {
        spec::container(&format!("c{}", self.rig.next()), BUSYBOX, &["sh", "-c", script])
    }

    /// Starts a busybox container with a shell script and waits for `ready` in its log, when that is not empty.
    pub fn start_shell(&self, script: &str, ready: &str) -> Result<Container<'a>> {
        let container = self.start(self.shell(script))?;
        if !ready.is_empty() {
            container.wait_for_output(ready)?;
        }
        Ok(container)
    }

    /// A container that stays idle, for running commands in.
    pub fn idle(&self) -> Result<Container<'a>> {
        self.start_shell("trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done", "up\n")
    }

    /// Runs a shell script to its end in a container of its own; gives its exit code and output.
    pub fn once(&self, script: &str) -> Result<(i32, String)> {
        self.once_in(self.shell(script))
    }

    /// Runs a container to its end; gives its exit code and output.
    pub fn once_in(&self, config: api::ContainerConfig) -> Result<(i32, String)> {
        let container = self.start(config)?;
        let code = container.wait()?.exit_code;
        let output = container.output_at_end()?;
        Ok((code, String::from_utf8_lossy(&output).into_owned()))
    }

    /// The pod's status.
    pub fn status(&self) -> Result<api::PodSandboxStatus> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        self.rig.lab.cri.pod_sandbox_status(request)?.status.context("no status")
    }

    /// Whether the runtime says that the pod is ready.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.status()?.state == i32::from(api::PodSandboxState::SandboxReady))
    }

    /// The pod's addresses, the first one first.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let network = self.status()?.network.context("a pod without a network")?;
        Ok([network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
    }

    /// Sends `request` to a TCP port of the pod through the CRI's port-forward and gives the answer.
    pub fn forward(&self, port: u16, request: &[u8]) -> Result<Vec<u8>> {
        let call = api::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()] };
        let url = self.rig.lab.cri.port_forward(call)?.url;
        Forwarded::open(&self.rig.lab.cell, &url, port)?.exchange(request, Duration::from_secs(20))
    }

    /// The pod's counters.
    pub fn stats(&self) -> Result<api::PodSandboxStats> {
        let request = api::PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        self.rig.lab.cri.pod_sandbox_stats(request)?.stats.context("no stats")
    }

    /// Stops the pod.
    pub fn stop(&self) -> Result<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.rig.lab.cri.stop_pod_sandbox(request).context("StopPodSandbox")?;
        Ok(())
    }

    /// Stops and removes the pod.
    pub fn remove(&self) -> Result<()> {
        self.stop()?;
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.rig.lab.cri.remove_pod_sandbox(request).context("RemovePodSandbox")?;
        Ok(())
    }
}
