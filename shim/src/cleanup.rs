//! Taking apart what a pod left on the host, from its state on disk alone. Everything may be done twice.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cloister_network::{Error, Netns};
use containerd_shim::Flags;
use containerd_shim::api::DeleteResponse;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::{Config, is_name};
use crate::options::Kind;
use crate::state::{self, Phase, ProcessId, State};
use crate::{bootstrap, cgroup, events};

/// How long killed processes may take to go.
const DEATH: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// How long a shim that stops its pod may take to answer for its last containers.
const LAST_ANSWERS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The `delete` action. A container of a pod whose shim lives is that shim's business.
pub fn delete(flags: &Flags) -> Result<DeleteResponse> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().context("cannot find the bundle")?,
        bundle => PathBuf::from(bundle),
    };
    let (kind, pod) = bootstrap::pod_of(&flags.id, &bundle);
    if is_name(&pod) && is_name(&flags.namespace) {
        let folder = Config::load()?.folder(&flags.namespace, &pod);
        match state::read(&folder) {
            Some(state) if kind == Kind::Member && state.shim.is_alive() => {}
            Some(state) => {
                // When a pod loses its machine, containerd hangs up with the sandbox while it still deletes the containers. Cut off
                // there, it would look again only a second or two later, and report their end then.
                if state.phase == Phase::Stopping {
                    wait_for_end(state.shim, LAST_ANSWERS);
                }
                kill_one(state.shim);
                everything(&folder, &state)?;
            }
            None => {
                remove_folder(&folder)?;
                if kind != Kind::Member {
                    // The serving process may have died before it wrote anything.
                    remove_file(&bootstrap::socket(flags, &pod))?;
                }
            }
        }
    }
    Ok(DeleteResponse {
        exit_status: 137,
        exited_at: Some(events::timestamp(std::time::SystemTime::now())).into(),
        ..DeleteResponse::default()
    })
}

/// Ends and removes everything that a state names but the shim itself. The state goes last, and stays when something
/// else did, so that it can be tried again.
pub fn everything(folder: &Path, state: &State) -> Result<()> {
    let me = std::process::id();
    if let Some(vmm) = state.vmm {
        kill_one(vmm);
    }
    for pid in state.cgroups.iter().flat_map(|folder| cgroup::members(folder)) {
        if pid != me
            && let Some(process) = ProcessId::of(pid)
        {
            kill_one(process);
        }
    }
    let mut outcome = cgroup::remove(&state.cgroups);
    if let Some(netns) = state.netns.as_deref().filter(|_| !state.taps.is_empty()) {
        outcome = outcome.and(unmirror(netns));
    }
    outcome.and(remove_file(&state.socket)).and_then(|()| remove_folder(folder))
}

/// Kills a process and waits until it is gone.
fn kill_one(process: ProcessId) {
    if process.pid == std::process::id() {
        return;
    }
    if let Some(pidfd) = open(process) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        until_ended(&pidfd, DEATH);
    }
}

/// Waits for a process to end by itself.
fn wait_for_end(process: ProcessId, at_most: Timespec) {
    if let Some(pidfd) = open(process) {
        until_ended(&pidfd, at_most);
    }
}

fn open(process: ProcessId) -> Option<OwnedFd> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Opened first and compared then: the number cannot be another's any more.
    process.is_alive().then_some(pidfd)
}

/// A pidfd can be read once its process has ended.
fn until_ended(pidfd: &OwnedFd, at_most: Timespec) {
    let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&at_most));
}

/// Takes the redirections out of a namespace that still exists; the taps went with their holder.
fn unmirror(path: &Path) -> Result<()> {
    let failed = || format!("cannot tidy up the network namespace {}", path.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().with_context(failed)?;
    let remove = async {
        let netns = Netns::open(path)?;
        let interfaces = cloister_network::inspect(&netns).await?;
        cloister_network::remove(&netns, &interfaces).await
    };
    match runtime.block_on(remove) {
        // It may go at any time: as soon as the pod is stopped containerd unmounts the file, and then removes it.
        Err(Error::Open { .. }) => Ok(()),
        other => other.with_context(failed),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a pod's folder. Nothing is ever followed into a mount: below the shared folder are the mount points of the
/// host's own folders, and only these empty places are removed.
pub fn remove_folder(folder: &Path) -> Result<()> {
    let share = folder.join("share");
    while unmount(&share, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    if share.is_dir() {
        empty(&share, true)?;
        remove_dir(&share)?;
    }
    if folder.is_dir() {
        empty(folder, false)?;
        remove_dir(folder)?;
    }
    Ok(())
}

/// Removes the entries of a folder, folders among them only when they are empty.
fn empty(folder: &Path, folders: bool) -> Result<()> {
    let failed = || format!("cannot empty {}", folder.display());
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if !entry.file_type().with_context(failed)?.is_dir() {
            remove_file(&entry.path())?;
        } else if folders {
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::state::StateFile;

    fn state(folder: &Path, vmm: Option<ProcessId>) -> State {
        State {
            phase: Phase::Running,
            name: None,
            shim: ProcessId { pid: u32::MAX, started: 0 },
            vmm,
            uid: None,
            socket: folder.join("socket"),
            netns: None,
            taps: Vec::new(),
            cgroups: Vec::new(),
        }
    }

    #[test]
    fn a_network_namespace_that_is_going_needs_no_tidying() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cni-1");
        unmirror(&path).unwrap();
        fs::write(&path, "").unwrap();
        unmirror(&path).unwrap();
    }

    #[test]
    fn everything_a_state_names_goes_and_a_second_time_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod");
        fs::create_dir_all(folder.join("share/1")).unwrap();
        fs::write(folder.join("share/2"), "").unwrap();
        fs::write(folder.join("console.log"), "x").unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let vmm = ProcessId::of(child.id());
        let state = state(root.path(), vmm);
        fs::write(&state.socket, "").unwrap();
        everything(&folder, &state).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!folder.exists() && !state.socket.exists());
        everything(&folder, &state).unwrap();
    }

    #[test]
    fn the_state_stays_as_long_as_something_that_it_names() {
        let root = tempfile::tempdir().unwrap();
        let (folder, stuck) = (root.path().join("pod"), root.path().join("cgroup"));
        fs::create_dir_all(stuck.join("child")).unwrap();
        let state = State { cgroups: vec![stuck.clone()], ..state(root.path(), None) };
        StateFile::create(folder.clone(), state.clone()).unwrap();
        everything(&folder, &state).unwrap_err();
        assert_eq!(state::read(&folder).as_ref(), Some(&state));
        fs::remove_dir(stuck.join("child")).unwrap();
        everything(&folder, &state).unwrap();
        assert!(!folder.exists() && !stuck.exists());
    }

    #[test]
    fn a_mounted_folder_of_the_host_is_never_emptied() {
        let root = tempfile::tempdir().unwrap();
        let (host, folder) = (root.path().join("host"), root.path().join("pod"));
        fs::create_dir_all(&host).unwrap();
        fs::write(host.join("precious"), "x").unwrap();
        fs::create_dir_all(folder.join("share/1")).unwrap();
        rustix::mount::mount_bind(&host, folder.join("share/1")).unwrap();
        let removed = remove_folder(&folder);
        while unmount(folder.join("share/1"), UnmountFlags::DETACH).is_ok() {}
        assert!(removed.is_err(), "what is mounted there is somebody else's");
        assert!(host.join("precious").exists());
        remove_folder(&folder).unwrap();
    }

    #[test]
    fn a_number_that_belongs_to_another_process_now_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let real = ProcessId::of(child.id()).unwrap();
        kill_one(ProcessId { started: real.started + 1, ..real });
        assert!(real.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
