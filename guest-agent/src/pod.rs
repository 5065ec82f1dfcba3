//! What the containers of a pod share: the hostname, kernel settings, `/dev/shm`.

use std::fs;
use std::path::{Path, PathBuf};

use cloister_protocol::{limits, v1};
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::error::{Context, Error, Kind, Result};

/// The pod's `/dev/shm`; a bind mount source of an OCI spec.
pub const SHM: &str = "/run/cloister/shm";

/// Bytes of it when the host gives none.
const SHM_BYTES: u64 = 64 << 20;

/// Bytes of a setting's value.
const VALUE: usize = 4096;

/// Does what the request says; a second one changes it. Blocks.
///
/// # Errors
/// When a name or value is not possible; settings before it stay set.
pub fn set_up(request: &v1::SetUpPodRequest) -> Result<()> {
    if !request.hostname.is_empty() {
        hostname(&request.hostname)?;
    }
    if request.sysctls.len() > limits::SYSCTLS {
        return Err(Error::invalid(format!("more than {} kernel settings", limits::SYSCTLS)));
    }
    let settings: Result<Vec<_>> =
        request.sysctls.iter().map(|(name, value)| Ok((name, sysctl(name, value)?, value))).collect();
    for (name, path, value) in settings? {
        fs::write(&path, value).context(|| format!("set {name} to {value:?}"))?;
    }
    shm(if request.shm_bytes == 0 { SHM_BYTES } else { request.shm_bytes })
}

fn hostname(name: &str) -> Result<()> {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.len() > limits::HOSTNAME_BYTES || !name.bytes().all(byte) {
        return Err(Error::invalid(format!("{name:?} is no hostname")));
    }
    rustix::system::sethostname(name.as_bytes()).context(|| format!("set the hostname to {name}"))
}

/// The file of a setting that a pod may change: those of the IPC and network namespaces, as kubelet has them
/// (`pkg/kubelet/sysctl/namespace.go`). A name whose first separator is a dot has slashes where the file's name has
/// dots (sysctl(8)).
fn sysctl(name: &str, value: &str) -> Result<PathBuf> {
    let slashes = name.find(['.', '/']).is_some_and(|first| name.as_bytes()[first] == b'/');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if slashes { name.to_owned() } else { name.chars().map(swap).collect() };
    let part = |part: &str| {
        let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@');
        !matches!(part, "" | "." | "..") && part.bytes().all(byte)
    };
    if !path.split('/').all(part) || name.len() > limits::PATH_BYTES || value.len() > VALUE {
        return Err(Error::invalid(format!("{name:?} is no kernel setting, or its value is too long")));
    }
    let allowed = ["kernel/shm", "kernel/msg", "fs/mqueue/", "net/"];
    if path != "kernel/sem" && !allowed.iter().any(|start| path.starts_with(start)) {
        let what = format!(
            "kernel setting {name} is not a pod's: only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are"
        );
        return Err(Error::new(Kind::Denied, what));
    }
    Ok(Path::new("/proc/sys").join(path))
}

fn shm(bytes: u64) -> Result<()> {
    let what = || format!("mount {SHM} with {bytes} bytes");
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={bytes}")).context(what)?;
    match fs::create_dir(SHM) {
        Ok(()) => mount("shm", SHM, "tmpfs", flags, options.as_c_str()).context(what),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            mount_remount(SHM, flags, options.as_c_str()).context(what)
        }
        Err(e) => Err(e).context(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_settings_have_files() {
        for (name, path) in [
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("kernel.sem", "kernel/sem"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ] {
            assert_eq!(sysctl(name, "1").unwrap(), Path::new("/proc/sys").join(path), "{name}");
        }
    }

    #[test]
    fn others_and_paths_are_refused() {
        for name in ["kernel.core_pattern", "vm.swappiness", "kernel.semx", "fs.mqueuex", "kernel", "net"] {
            assert_eq!(sysctl(name, "1").unwrap_err().kind, Kind::Denied, "{name}");
        }
        for name in ["", ".", "net..x", "net/../kernel/panic", "net.ipv4.", "/net/x", "net.a b", "net.x\0"] {
            assert!(sysctl(name, "1").is_err(), "{name:?}");
        }
        assert!(sysctl("net.x", &"1".repeat(VALUE + 1)).is_err());
        for name in ["a/b", "ü", &"x".repeat(65)] {
            assert!(hostname(name).is_err(), "{name}");
        }
    }
}
