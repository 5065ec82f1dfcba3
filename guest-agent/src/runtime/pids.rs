//! The first process of a PID namespace that the containers of a pod share.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{DumpableBehavior, pivot_root, set_dumpable_behavior};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::channel::{Report, report};
use crate::error::{Context, Result};

/// Makes the namespace, and in it a process that reaps orphans until the guest ends. `folder` is empty.
pub fn run(channel: &OwnedFd, folder: &Path) -> Result<()> {
    // Orphans of containers matter as little to it as memory does: it must not be the one that is killed.
    std::fs::write("/proc/self/oom_score_adj", "-1000").context(|| "set oom_score_adj".into())?;
    // SAFETY: this process has one thread and shares no descriptor table.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID | UnshareFlags::NEWNS) }
        .context(|| "make a PID namespace".into())?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        0 => {
            if let Err(error) = isolate(folder) {
                report(channel, &Report::Failed { kind: error.kind, message: error.message }, None);
                // SAFETY: ends this process without running anything of the parent's.
                unsafe { libc::_exit(1) }
            }
            report(channel, &Report::Ready, None);
            reap()
        }
        child if child > 0 => {
            report(channel, &Report::Pid(child.unsigned_abs()), None);
            Ok(())
        }
        _ => Err(std::io::Error::last_os_error()).context(|| "fork".into()),
    }
}

/// Containers see this process as number 1: nothing of the guest can be reached through it.
fn isolate(folder: &Path) -> Result<()> {
    let what = || "isolate the pod's first process".into();
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(what)?;
    rustix::process::setsid().context(what)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", folder, "tmpfs", flags, c"size=4096").context(what)?;
    std::env::set_current_dir(folder).context(what)?;
    pivot_root(".", ".").context(what)?;
    unmount(".", UnmountFlags::DETACH).context(what)?;
    rustix::thread::set_name(c"pod").context(what)
}

/// Reaps for ever. Signals from within the namespace do not reach a first process that does not ask for them
/// (pid_namespaces(7)).
fn reap() -> ! {
    // SAFETY: plain system calls on a signal set that lives here. The descriptors are closed because nothing uses them
    // any more, the channel included.
    unsafe {
        let mut children: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const children, std::ptr::null_mut());
        libc::close_range(0, libc::c_uint::MAX, 0);
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) > 0 {}
            libc::sigwaitinfo(&raw const children, std::ptr::null_mut());
        }
    }
}
