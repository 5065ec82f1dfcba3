//! The mounts, devices and hidden paths of a container, as docker sets them up.

use cloister_protocol::paths;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount,
    MountBuilder,
};

use super::BindMount;

/// Paths a container can't see; none when privileged.
pub fn masked_paths(privileged: bool) -> Vec<String> {
    if privileged { Vec::new() } else { paths::MASKED.map(str::to_owned).to_vec() }
}

/// Paths a container can't write; none when privileged.
pub fn read_only_paths(privileged: bool) -> Vec<String> {
    if privileged { Vec::new() } else { paths::READ_ONLY.map(str::to_owned).to_vec() }
}

/// The kernel file systems of a container, then its bind mounts, in the order they are mounted.
pub fn mounts(privileged: bool, binds: &[BindMount]) -> Result<Vec<Mount>, OciSpecError> {
    let sys = if privileged { "nosuid,noexec,nodev,rw" } else { "nosuid,noexec,nodev,ro" };
    let table = [
        ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/sys", "sysfs", "sysfs", sys),
        ("/sys/fs/cgroup", "cgroup", "cgroup", sys),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ];
    let mut mounts = Vec::with_capacity(table.len() + binds.len());
    for (destination, kind, source, options) in table {
        mounts.push(mount(destination, kind, source, options.split(','))?);
    }
    for bind in binds {
        let access = if bind.read_only { "ro" } else { "rw" };
        mounts.push(mount(&bind.destination, "bind", &bind.source, ["rbind", "rprivate", access])?);
    }
    Ok(mounts)
}

fn mount<'a>(
    destination: &str,
    kind: &str,
    source: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .build()
}

/// The device cgroup: everything for a privileged container; otherwise null, zero, full, random, urandom and
/// terminals, plus mknod(2) of any node (which then can't be opened).
pub fn device_rules(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    if privileged {
        return Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")?]);
    }
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm")?,
        rule(true, LinuxDeviceType::C, None, None, "m")?,
        rule(true, LinuxDeviceType::B, None, None, "m")?,
        rule(true, LinuxDeviceType::C, Some(136), None, "rwm")?,
    ];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), Some(minor), "rwm")?);
    }
    Ok(rules)
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, OciSpecError> {
    let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
    if let Some(major) = major {
        rule = rule.major(major);
    }
    if let Some(minor) = minor {
        rule = rule.minor(minor);
    }
    rule.build()
}

/// Nodes beyond the runtime's own that a privileged container gets, all of the guest's kernel: what nested
/// container tools open (`fuse`, `tun`, loop devices, the kernel log).
pub fn devices(privileged: bool) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let table = [
        ("/dev/fuse", 10, 229),
        ("/dev/net/tun", 10, 200),
        ("/dev/loop-control", 10, 237),
        ("/dev/kmsg", 1, 11),
    ];
    let mut nodes = Vec::new();
    if privileged {
        for (path, major, minor) in table {
            nodes.push(
                LinuxDeviceBuilder::default()
                    .path(path)
                    .typ(LinuxDeviceType::C)
                    .major(major)
                    .minor(minor)
                    .file_mode(0o666u32)
                    .uid(0u32)
                    .gid(0u32)
                    .build()?,
            );
        }
    }
    Ok(nodes)
}
