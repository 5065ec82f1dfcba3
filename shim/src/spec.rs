//! From the specification that containerd wrote for its host to the one for the guest.
//!
//! What the guest's agent enforces (user, capabilities, seccomp, paths, limits) is passed on; what names things of the
//! host (namespaces, cgroups, devices' numbers, hooks, labels) is translated or left out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cloister_sandbox::PidNamespace;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, Spec,
};

use crate::failure::{Failure, Result};

/// Character devices whose numbers mean the same in every Linux, and that a guest has: major and minor number (the
/// kernel's `Documentation/admin-guide/devices.txt`).
const GUEST_DEVICES: [(i64, i64); 12] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
    (10, 229),
    (10, 237),
];
/// What a privileged container has on top of everyone's.
const PRIVILEGED_DEVICES: [(&str, i64, i64); 3] =
    [("/dev/fuse", 10, 229), ("/dev/net/tun", 10, 200), ("/dev/kmsg", 1, 11)];
/// Devices that every container has anyway.
const EVERYWHERE: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

/// A block device of the host that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its major and minor number on the host.
    pub number: (i64, i64),
    /// Where the container has it.
    pub path: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
    /// Permission bits, owner and group of its node.
    pub owner: (u32, u32, u32),
}

/// Whether a container may do everything: with the VM, and nothing of the host.
pub fn is_privileged(spec: &Spec) -> bool {
    let rules = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()?.devices().clone());
    rules.iter().flatten().any(|rule| {
        rule.allow()
            && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
            && rule.major().is_none_or(|n| n < 0)
            && rule.minor().is_none_or(|n| n < 0)
    })
}

/// Whose process ids a container sees, unless it joins another container's. A path to a namespace is the pod's.
pub fn pid_namespace(spec: &Spec) -> PidNamespace {
    match namespace(spec, LinuxNamespaceType::Pid) {
        Some(namespace) if namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) => {
            PidNamespace::Pod
        }
        Some(_) => PidNamespace::Own,
        None => PidNamespace::Guest,
    }
}

/// The process whose process ids a container joins: containerd names the namespace `/proc/PID/ns/pid`.
pub fn joined_process(spec: &Spec) -> Option<u32> {
    let path = namespace(spec, LinuxNamespaceType::Pid)?.path().as_ref()?;
    path.strip_prefix("/proc").ok()?.parent()?.parent()?.to_str()?.parse().ok()
}

/// A namespace of a specification.
pub fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    spec.linux().as_ref()?.namespaces().as_ref()?.iter().find(|namespace| namespace.typ() == kind)
}

/// The block devices that a container gets. A privileged one gets none: what the host has is none of its business.
pub fn blocks(spec: &Spec) -> Vec<Block> {
    if is_privileged(spec) {
        return Vec::new();
    }
    let Some(linux) = spec.linux() else { return Vec::new() };
    let rules =
        linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default();
    let writable = |device: &LinuxDevice| {
        rules.iter().any(|rule| {
            rule.allow()
                && rule.major() == Some(device.major())
                && rule.minor() == Some(device.minor())
                && rule.access().as_deref().is_none_or(|access| access.contains('w'))
        })
    };
    let devices = linux.devices().iter().flatten().filter(|device| device.typ() == LinuxDeviceType::B);
    devices
        .map(|device| Block {
            number: (device.major(), device.minor()),
            path: device.path().clone(),
            read_only: !writable(device),
            owner: (
                device.file_mode().unwrap_or(0o660),
                device.uid().unwrap_or_default(),
                device.gid().unwrap_or_default(),
            ),
        })
        .collect()
}

/// What a container may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u64>,
}

/// Reads the limits.
pub fn limits(resources: Option<&LinuxResources>) -> Limits {
    let memory = resources.and_then(|resources| resources.memory().as_ref()?.limit());
    let cpu = resources.and_then(|resources| {
        let cpu = resources.cpu().as_ref()?;
        millis(cpu.quota()?, cpu.period().unwrap_or(100_000))
    });
    Limits { memory: memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0), cpu }
}

/// Thousandths of a processor that a quota in microseconds for each period means; `None` for no limit.
pub fn millis(quota: i64, period: u64) -> Option<u64> {
    let quota = u64::try_from(quota).ok().filter(|quota| *quota > 0)?;
    quota.saturating_mul(1000).checked_div(period)
}

/// Writes the guest's specification; `mounts` are the guest's.
///
/// # Errors
/// When the container asks for a device that a guest does not have.
pub fn translate(host: &Spec, mounts: Vec<Mount>) -> Result<Spec> {
    let privileged = is_privileged(host);
    let mut spec = host.clone();
    spec.set_hooks(None);
    spec.set_annotations(Some(HashMap::new()));
    spec.set_hostname(None);
    spec.set_domainname(None);
    spec.set_mounts(Some(mounts.into_iter().map(plain).collect()));
    let mut linux = host.linux().clone().unwrap_or_default();
    linux.set_namespaces(Some(namespaces(host)?));
    linux.set_cgroups_path(None);
    linux.set_uid_mappings(None);
    linux.set_gid_mappings(None);
    linux.set_sysctl(None);
    linux.set_intel_rdt(None);
    linux.set_mount_label(None);
    // Mounts of the host come with the folders that are shared; the guest has nothing to pass on.
    linux.set_rootfs_propagation(None);
    let devices = devices(linux.devices().as_deref().unwrap_or_default(), privileged)?;
    let resources = linux.resources().clone().map(|resources| resources_for(resources, &devices));
    linux.set_resources(resources);
    linux.set_devices(Some(devices));
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Limits that mean something in the guest: processors and memory nodes have other numbers there, and there is no
/// huge page, block device or network class of the host.
pub fn guest_limits(mut resources: LinuxResources) -> LinuxResources {
    if let Some(mut cpu) = resources.cpu().clone() {
        cpu.set_cpus(None).set_mems(None).set_realtime_period(None).set_realtime_runtime(None);
        resources.set_cpu(Some(cpu));
    }
    if let Some(mut memory) = *resources.memory() {
        memory.set_kernel(None).set_kernel_tcp(None).set_swappiness(None).set_disable_oom_killer(None);
        resources.set_memory(Some(memory));
    }
    resources.set_hugepage_limits(None);
    resources.set_block_io(None);
    resources.set_network(None);
    resources.set_rdma(None);
    resources.set_unified(None);
    resources
}

fn resources_for(resources: LinuxResources, devices: &[LinuxDevice]) -> LinuxResources {
    let mut resources = guest_limits(resources);
    let mut rules = resources.devices().clone().unwrap_or_default();
    // Rules for single devices of the host name other devices in the guest.
    rules.retain(|rule| !is_single(rule));
    for device in devices {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(device.typ())).set_access(Some("rwm".to_owned()));
        rule.set_major(Some(device.major())).set_minor(Some(device.minor()));
        rules.push(rule);
    }
    resources.set_devices(Some(rules));
    resources
}

/// A rule about one device that is not among those of every container.
fn is_single(rule: &LinuxDeviceCgroup) -> bool {
    let standard = |major: i64| matches!(major, 1 | 5 | 136);
    let major = rule.major().filter(|major| *major >= 0);
    rule.allow() && major.is_some_and(|major| !standard(major) || rule.typ() == Some(LinuxDeviceType::B))
}

/// The guest's character devices.
fn devices(asked: &[LinuxDevice], privileged: bool) -> Result<Vec<LinuxDevice>> {
    let mut found = Vec::new();
    if privileged {
        for (name, major, minor) in &PRIVILEGED_DEVICES {
            found.push(node(Path::new(name), *major, *minor, None)?);
        }
        return Ok(found);
    }
    for device in asked.iter().filter(|device| device.typ() != LinuxDeviceType::B) {
        let path = device.path();
        if EVERYWHERE.iter().any(|name| path == Path::new(name)) {
            continue;
        }
        let (major, minor) = (device.major(), device.minor());
        if !GUEST_DEVICES.contains(&(major, minor)) {
            return Err(Failure::Invalid(format!(
                "the container asks for {}, a device of the host; a microVM has only its own",
                path.display()
            )));
        }
        found.push(node(path, major, minor, Some(device))?);
    }
    Ok(found)
}

fn node(path: &Path, major: i64, minor: i64, like: Option<&LinuxDevice>) -> Result<LinuxDevice> {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(LinuxDeviceType::C)
        .major(major)
        .minor(minor)
        .file_mode(like.and_then(LinuxDevice::file_mode).unwrap_or(0o666))
        .uid(like.and_then(LinuxDevice::uid).unwrap_or_default())
        .gid(like.and_then(LinuxDevice::gid).unwrap_or_default())
        .build()
        .map_err(Failure::other)
}

/// Mount and cgroup namespaces are a container's own; its pid namespace is chosen beside the specification; the
/// network, IPC and names are the guest's.
fn namespaces(host: &Spec) -> Result<Vec<LinuxNamespace>> {
    let mut kinds = vec![LinuxNamespaceType::Mount];
    if pid_namespace(host) == PidNamespace::Own {
        kinds.push(LinuxNamespaceType::Pid);
    }
    if namespace(host, LinuxNamespaceType::Cgroup).is_some() {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let build = |kind| LinuxNamespaceBuilder::default().typ(kind).build().map_err(Failure::other);
    kinds.into_iter().map(build).collect()
}

/// Without the labels and id maps of the host's kernel.
fn plain(mut mount: Mount) -> Mount {
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
    let keep = |option: &String| {
        !["context=", "seclabel", "idmap", "ridmap"].iter().any(|foreign| option.starts_with(foreign))
    };
    let options = mount.options().clone().map(|options| options.into_iter().filter(keep).collect());
    mount.set_options(options);
    mount
}

#[cfg(test)]
mod tests;
