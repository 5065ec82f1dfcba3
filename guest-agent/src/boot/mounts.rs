//! The guest's own file systems.

use std::ffi::CStr;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::cgroup::ROOT as CGROUP_ROOT;
use crate::error::{Context, Result};

/// Makes a tmpfs the root. The initramfs itself cannot be left by `pivot_root(2)`, which containers need
/// (Documentation/filesystems/ramfs-rootfs-initramfs.rst); its one file stays open as `/proc/self/exe`.
pub fn switch_root() -> Result<()> {
    std::fs::create_dir_all("/root.new").context(|| "create the new root".into())?;
    let private = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", "/root.new", "tmpfs", private, c"mode=0755").context(|| "mount the new root".into())?;
    std::env::set_current_dir("/root.new").context(|| "enter the new root".into())?;
    for folder in ["dev", "etc", "proc", "run", "sys", "tmp"] {
        std::fs::create_dir(folder).context(|| format!("create /{folder}"))?;
    }
    mount_move(".", "/").context(|| "move the new root over the initramfs".into())?;
    rustix::process::chroot(".").context(|| "make the new root the root".into())?;
    std::env::set_current_dir("/").context(|| "enter the root".into())
}

/// Mounts what the kernel offers. File systems that a smaller kernel may lack are skipped.
pub fn system() -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let device = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach("proc", "/proc", plain, c"")?;
    attach("sysfs", "/sys", plain, c"")?;
    attach("devtmpfs", "/dev", device, c"mode=0755")?;
    attach("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")?;
    for folder in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/run/cloister", "/run/cloister/shares"] {
        create(folder)?;
    }
    attach("devpts", "/dev/pts", device, c"newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    attach("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777")?;
    attach("cgroup2", CGROUP_ROOT, plain, c"nsdelegate,memory_recursiveprot")?;
    for (kind, target) in
        [("mqueue", "/dev/mqueue"), ("bpf", "/sys/fs/bpf"), ("securityfs", "/sys/kernel/security")]
    {
        optional(kind, target, plain)?;
    }
    controllers()
}

fn attach(kind: &str, target: &str, flags: MountFlags, data: &CStr) -> Result<()> {
    mount(kind, target, kind, flags, data).context(|| format!("mount {kind} on {target}"))
}

fn create(folder: &str) -> Result<()> {
    match std::fs::create_dir(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(e).context(|| format!("create {folder}"))
        }
        _ => Ok(()),
    }
}

fn optional(kind: &str, target: &str, flags: MountFlags) -> Result<()> {
    match mount(kind, target, kind, flags, None) {
        Ok(()) | Err(Errno::NODEV | Errno::NOENT) => Ok(()),
        Err(e) => Err(e).context(|| format!("mount {kind} on {target}")),
    }
}

/// Gives every controller to the cgroups below the root.
fn controllers() -> Result<()> {
    let path = format!("{CGROUP_ROOT}/cgroup.controllers");
    let all = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let enable: Vec<String> = all.split_ascii_whitespace().map(|name| format!("+{name}")).collect();
    let path = format!("{CGROUP_ROOT}/cgroup.subtree_control");
    std::fs::write(&path, enable.join(" ")).context(|| format!("write {path}"))
}
