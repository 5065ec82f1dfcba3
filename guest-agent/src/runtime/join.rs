//! Starting a process in a running container.
//!
//! libcontainer 0.7 can do this too, but it applies no seccomp filter to such a process, cannot join a user namespace
//! and takes two forks and a set of channels; this is the same in one fork.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxSeccomp, PosixRlimit, Process};
use libcontainer::syscall::syscall::create_syscall;
use rustix::fs::{Mode, OFlags, fstatfs};
use rustix::process::{Gid, Pid, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use serde::{Deserialize, Serialize};

use super::caps::Sets;
use super::channel::{Report, receive_descriptor, report};
use super::program;
use crate::error::{Context, Error, Result};

/// `DEVPTS_SUPER_MAGIC` of the kernel's `magic.h`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// What to start, where.
#[derive(Serialize, Deserialize)]
pub struct Request {
    /// The process; its user is numeric.
    pub process: Process,
    /// The container's filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// `CLONE_NEW…` flags of the namespaces that are the container's own.
    pub namespaces: i32,
    /// Folders of cgroups to try, in order.
    pub cgroups: Vec<PathBuf>,
    /// The container's own value, for a process that gives none.
    pub oom_score_adj: Option<i32>,
}

/// Starts the process that the file at `path` describes in the container of the process whose pidfd comes first on the
/// channel.
pub fn run(channel: &OwnedFd, path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).context(|| format!("read {}", path.display()))?;
    let request: Request = serde_json::from_slice(&bytes).context(|| format!("parse {}", path.display()))?;
    let container = receive_descriptor(channel)?;

    let score = request.process.oom_score_adj().or(request.oom_score_adj).unwrap_or(0);
    std::fs::write("/proc/self/oom_score_adj", score.to_string()).context(|| "set oom_score_adj".into())?;
    enter_cgroup(&request.cgroups)?;
    for limit in request.process.rlimits().iter().flatten() {
        set_limit(limit)?;
    }
    // SAFETY: a plain system call; this process has one thread.
    if unsafe { libc::setns(container.as_raw_fd(), request.namespaces) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "enter the container's namespaces".into());
    }
    drop(container);
    // The PID namespace takes effect in a child.
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        0 => {
            let error = match become_process(channel, &request) {
                Ok(()) => program::execute(&request.process),
                Err(error) => error,
            };
            report(channel, &Report::Failed { kind: error.kind, message: error.message }, None);
            // SAFETY: ends this process without running anything of the parent's.
            unsafe { libc::_exit(127) }
        }
        child if child > 0 => {
            report(channel, &Report::Pid(child.unsigned_abs()), None);
            Ok(())
        }
        _ => Err(std::io::Error::last_os_error()).context(|| "fork".into()),
    }
}

/// A cgroup that hands controllers to its children takes no processes itself (EBUSY): the next one is tried.
fn enter_cgroup(cgroups: &[PathBuf]) -> Result<()> {
    let mut result = Err(Error::invalid("no cgroup given"));
    for cgroup in cgroups {
        let file = cgroup.join("cgroup.procs");
        result = std::fs::write(&file, "0").context(|| format!("enter {}", file.display()));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn set_limit(limit: &PosixRlimit) -> Result<()> {
    create_syscall().set_rlimit(limit).context(|| format!("set limit {:?}", limit.typ()))
}

fn become_process(channel: &OwnedFd, request: &Request) -> Result<()> {
    let process = &request.process;
    let user = process.user();
    rustix::process::setsid().context(|| "start a session".into())?;
    if process.terminal().unwrap_or(false) {
        terminal(channel, user.uid())?;
    }
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).context(|| "set no_new_privs".into())?;
    }
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(0o022)));
    // With the rights of root, then again as the user, who may see what root cannot (root-squashing mounts).
    let early = enter_folder(process.cwd());

    let sets = Sets::of(process.capabilities().as_ref());
    sets.bound()?;
    rustix::thread::set_keep_capabilities(true).context(|| "keep capabilities".into())?;
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).context(|| format!("set groups {groups:?}"))?;
    let gid = Gid::from_raw(user.gid());
    rustix::thread::set_thread_res_gid(gid, gid, gid).context(|| format!("become group {}", user.gid()))?;
    let uid = Uid::from_raw(user.uid());
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(|| format!("become user {}", user.uid()))?;
    rustix::thread::set_keep_capabilities(false).context(|| "stop keeping capabilities".into())?;

    // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go; with it, as late as
    // possible, so that it needs to allow as little as possible.
    if !no_new_privileges {
        restore_effective()?;
        filter(request.seccomp.as_ref())?;
    }
    sets.apply()?;
    early.or_else(|_| enter_folder(process.cwd()))?;
    close_others()?;
    if no_new_privileges {
        filter(request.seccomp.as_ref())?;
    }
    Ok(())
}

/// Changing the user id cleared the effective set.
fn restore_effective() -> Result<()> {
    let mut sets = rustix::thread::capabilities(None).context(|| "read the capabilities".into())?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).context(|| "restore the capabilities".into())
}

/// `getcwd(3)` must find a path: a folder outside the root has none (CVE-2024-21626).
fn enter_folder(folder: &Path) -> Result<()> {
    let what = || format!("enter {}", folder.display());
    std::env::set_current_dir(folder).context(what)?;
    std::env::current_dir().context(what).map(drop)
}

fn filter(seccomp: Option<&LinuxSeccomp>) -> Result<()> {
    match seccomp.map(libcontainer::seccomp::initialize_seccomp) {
        None | Some(Ok(None)) => Ok(()),
        Some(Ok(Some(_))) => Err(Error::invalid("seccomp notification is not possible here")),
        Some(Err(e)) => Err(e).context(|| "set the seccomp filter".into()),
    }
}

/// Everything but the standard streams closes at `execve(2)`, the channel too, which is how the agent learns of it.
fn close_others() -> Result<()> {
    // SAFETY: only marks descriptors.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "mark descriptors".into());
    }
    Ok(())
}

/// A terminal of the container's own devpts, sent to the agent and made this process's controlling terminal.
fn terminal(channel: &OwnedFd, uid: u32) -> Result<()> {
    let what = || "open a terminal in the container".into();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).context(what)?;
    // What is at that path is the container's choice (CVE-2025-52565).
    if fstatfs(&master).context(what)?.f_type != DEVPTS_MAGIC {
        return Err(Error::invalid("/dev/pts of the container is no devpts"));
    }
    unlockpt(&master).context(what)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context(what)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None).context(what)?;
    rustix::process::ioctl_tiocsctty(&slave).context(what)?;
    for number in 0..3 {
        // SAFETY: replaces a standard stream, which nothing here owns, by the terminal.
        if unsafe { libc::dup2(slave.as_raw_fd(), number) } < 0 {
            return Err(std::io::Error::last_os_error()).context(what);
        }
    }
    report(channel, &Report::Terminal, Some(master.as_fd()));
    Ok(())
}

/// The pidfd a join needs.
///
/// # Errors
/// When there is no such process.
pub fn open(pid: u32) -> Result<OwnedFd> {
    let target =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Error::invalid("no process id"))?;
    rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty())
        .context(|| format!("open process {pid}"))
}
