//! Pods and containers as tests describe them, short for the usual and open for everything.

use super::api::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

/// The parts of a pod's configuration that are always there once `linux` was called.
pub trait PodConfigExt {
    /// The Linux part, made when it is missing.
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig;
}

impl PodConfigExt for PodSandboxConfig {
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.linux.get_or_insert_default()
    }
}

/// The same for a container's configuration.
pub trait ContainerConfigExt: Sized {
    /// The resources, made when they are missing.
    fn resources(&mut self) -> &mut LinuxContainerResources;
    /// The security context, made when it is missing.
    fn security(&mut self) -> &mut LinuxContainerSecurityContext;
    /// Adds a bind mount.
    fn mounted(self, host: &str, container: &str, readonly: bool) -> Self;
    /// Adds an environment variable.
    fn with_env(self, name: &str, value: &str) -> Self;
}

impl ContainerConfigExt for ContainerConfig {
    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn mounted(mut self, host: &str, container: &str, readonly: bool) -> Self {
        self.mounts.push(Mount {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            readonly,
            ..Mount::default()
        });
        self
    }

    fn with_env(mut self, name: &str, value: &str) -> Self {
        self.envs.push(KeyValue { key: name.to_owned(), value: value.to_owned() });
        self
    }
}

/// A pod as the kubelet would describe it: PID namespace per container, network of its own, a cgroup, a log folder.
pub fn pod(name: &str, uid: &str, cgroup: &str, logs: &str) -> PodSandboxConfig {
    let mut config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: "lab".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.to_owned(),
        ..PodSandboxConfig::default()
    };
    let linux = config.linux();
    linux.cgroup_parent = cgroup.to_owned();
    linux.security_context.get_or_insert_default().namespace_options = Some(namespaces());
    config
}

/// Network and IPC of the pod, a PID namespace for each container.
pub fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    }
}

/// A container that runs `command` from `image`; its log is `NAME.log` in the pod's folder.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..ImageSpec::default()
        }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..ContainerConfig::default()
    };
    config.security().namespace_options = Some(namespaces());
    config
}

/// A TCP port of the host that leads to one of the pod.
pub fn host_port(host: u16, container: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: container.into(),
        host_port: host.into(),
        host_ip: String::new(),
    }
}
