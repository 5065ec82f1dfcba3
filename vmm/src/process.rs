//! Helper processes (QEMU, virtiofsd) that never outlive this process.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, so every helper is started from one
//! thread that lives as long as the process. A pidfd is the only name used for a child afterwards.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use rustix::process::{
    Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions, pidfd_open,
    pidfd_send_signal, waitid,
};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

use crate::{Error, Result};

/// How much of a helper's error output is kept, in bytes (the end of it).
const STDERR_TAIL: usize = 4096;

/// The unprivileged identity a helper runs as when we are root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; supplementary groups are dropped.
    pub gid: u32,
}

/// A program to start.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Name for errors.
    pub what: &'static str,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Descriptors the program inherits under their present numbers; every other one is closed.
    pub inherit: Vec<OwnedFd>,
    pub user: Option<User>,
    /// The network namespace it runs in; ours otherwise. Needs root.
    pub netns: Option<OwnedFd>,
    /// Upper limit of open files.
    pub open_files: u64,
}

/// A running helper. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: Arc<OwnedFd>,
    pid: u32,
    stderr: Arc<Mutex<Vec<u8>>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Launch {
    /// Starts the program; must be called inside a tokio runtime.
    pub async fn start(self) -> Result<Process> {
        let what = self.what;
        let program = self.program.clone();
        let (reply, answer) = oneshot::channel();
        let (stderr_read, stderr_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(Error::errno("create a pipe"))?;
        spawner()
            .send(Job { launch: self, stderr: stderr_write, reply })
            .map_err(|_| Error::Protocol("the thread that starts helpers is gone".into()))?;
        let (pid, pidfd) = answer
            .await
            .map_err(|_| Error::Protocol("the thread that starts helpers is gone".into()))?
            .map_err(|source| Error::Spawn { what, path: program, source })?;
        let pidfd = Arc::new(pidfd);
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (exited, exit) = watch::channel(None);
        let process = Process { pidfd: pidfd.clone(), pid, stderr: stderr.clone(), exit };
        // SAFETY: the descriptor stays open as long as the `AsyncFd`, which holds the `Arc`.
        let watched = unsafe { AsyncFd::register(pidfd) }
            .map_err(|e| Error::Os { what: "watch a child process", source: e.into() })?;
        let output = pipe::Receiver::from_owned_fd(stderr_read).map_err(Error::os("watch a pipe"))?;
        tokio::spawn(watch_child(watched, output, stderr, exited));
        Ok(process)
    }

    fn spawn(self, stderr: OwnedFd) -> io::Result<(u32, OwnedFd)> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().stdin(Stdio::null());
        command.stdout(stderr.try_clone()?).stderr(stderr).current_dir("/");
        let inherit: Vec<RawFd> = self.inherit.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = std::process::id();
        let (netns, user, open_files) = (self.netns, self.user, self.open_files);
        // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                become_nobody(netns.as_ref(), user)?;
                prepare_child(parent, &inherit, open_files)
            });
        }
        let child = command.spawn()?;
        let pid = child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        // The child is ours and not yet reaped, so its number cannot have been reused.
        Ok((pid, pidfd_open(raw, PidfdFlags::empty())?))
    }
}

/// Runs in the child between fork and exec: enters the namespace, which needs root, then gives root up.
fn become_nobody(netns: Option<&OwnedFd>, user: Option<User>) -> io::Result<()> {
    if let Some(netns) = netns {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    if let Some(User { uid, gid }) = user {
        // The calls of the system, not of libc, which would want to tell other threads: here is only one.
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

/// Runs in the child between fork and exec, after the change of user (which clears the death signal).
fn prepare_child(parent: u32, inherit: &[RawFd], open_files: u64) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the signal was armed.
    if rustix::process::getppid().map(|p| p.as_raw_nonzero().get()) != i32::try_from(parent).ok() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::setsid()?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(open_files);
    let limit = Some(open_files.min(hard));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    // SAFETY: marks descriptors close-on-exec, closes nothing now; the standard library's own
    // error pipe above 2 is close-on-exec already.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for &fd in inherit {
        // SAFETY: clears the close-on-exec flag of a descriptor the parent holds open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

struct Job {
    launch: Launch,
    stderr: OwnedFd,
    reply: oneshot::Sender<io::Result<(u32, OwnedFd)>>,
}

/// The thread every helper is forked from; it lives until the process ends.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (send, jobs) = mpsc::channel::<Job>();
        // If the thread cannot start, the receiver is dropped and every launch reports it.
        drop(std::thread::Builder::new().name("vmm-spawner".into()).spawn(move || {
            for job in jobs {
                let started = job.launch.spawn(job.stderr);
                if let Err(Ok((_, orphan))) = job.reply.send(started) {
                    kill_and_reap(&orphan);
                }
            }
        }));
        send
    })
}

async fn watch_child(
    pidfd: AsyncFd<Arc<OwnedFd>>,
    mut output: pipe::Receiver,
    stderr: Arc<Mutex<Vec<u8>>>,
    exited: watch::Sender<Option<ExitStatus>>,
) {
    let mut buffer = [0u8; 1024];
    let mut open = true;
    loop {
        tokio::select! {
            read = output.read(&mut buffer), if open => match read {
                Ok(n) if n > 0 => keep_tail(&stderr, buffer.get(..n).unwrap_or_default()),
                _ => open = false,
            },
            _ = pidfd.readable() => break,
        }
    }
    while let Ok(n) = output.try_read(&mut buffer) {
        if n == 0 {
            break;
        }
        keep_tail(&stderr, buffer.get(..n).unwrap_or_default());
    }
    // Already reaped by `Drop`: nobody is left to read the status.
    let status = reap(pidfd.get_ref()).unwrap_or_else(|| ExitStatus::from_raw(libc::SIGKILL));
    exited.send_replace(Some(status));
}

fn keep_tail(tail: &Mutex<Vec<u8>>, new: &[u8]) {
    if let Ok(mut tail) = tail.lock() {
        tail.extend_from_slice(new);
        let excess = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
    }
}

fn reap(pidfd: &OwnedFd) -> Option<ExitStatus> {
    let state = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).ok()??;
    Some(match (state.exit_status(), state.terminating_signal()) {
        (Some(code), _) => ExitStatus::from_raw(code << 8),
        (None, signal) => ExitStatus::from_raw(signal.unwrap_or(libc::SIGKILL)),
    })
}

fn kill_and_reap(pidfd: &OwnedFd) {
    // Fails only when the child is gone already. A killed child is reaped at once, so this does not wait.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    reap(pidfd);
}

impl Process {
    /// The process id, for reading `/proc`.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Sends `SIGKILL`.
    pub fn kill(&self) {
        // Fails only when the child is gone already.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    /// A handle that tells how the process ended, and does not keep it alive.
    pub fn exited(&self) -> Exited {
        Exited { exit: self.exit.clone(), stderr: self.stderr.clone() }
    }
}

/// The end of a [`Process`].
#[derive(Debug, Clone)]
pub(crate) struct Exited {
    exit: watch::Receiver<Option<ExitStatus>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Exited {
    /// Waits for the end and says in one line how it came: code or signal, and the last words if there are any.
    pub async fn wait(&mut self) -> String {
        let status = match self.exit.wait_for(Option::is_some).await {
            Ok(status) => *status,
            // The runtime that watched is gone.
            Err(_) => None,
        };
        let end = match status.map(|s| (s.code(), s.signal())) {
            Some((Some(code), _)) => format!("exit code {code}"),
            Some((None, Some(signal))) => format!("signal {signal}"),
            _ => "unknown status".into(),
        };
        let words = self.stderr.lock().map(|tail| last_words(&tail)).unwrap_or_default();
        if words.is_empty() { end } else { format!("{end}: {words}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            kill_and_reap(&self.pidfd);
        }
    }
}

/// The last lines of a helper's error output, on one line, printable characters only.
fn last_words(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let keep = lines.split_off(lines.len().saturating_sub(3));
    keep.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            what: "shell",
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            inherit: Vec::new(),
            user: None,
            netns: None,
            open_files: 64,
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let mut launch = shell("");
        launch.program = "/nonexistent/program".into();
        let error = launch.start().await.unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot start shell (/nonexistent/program): No such file or directory (os error 2)"
        );
    }

    #[tokio::test]
    async fn the_last_words_and_the_code_are_reported() {
        let process = shell("echo one >&2; printf 'two\\033[31m\\n' >&2; exit 3").start().await.unwrap();
        assert_eq!(process.exited().wait().await, "exit code 3: one; two [31m");
    }

    #[tokio::test]
    async fn endless_error_output_is_bounded() {
        let process =
            shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done").start().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(process.stderr.lock().unwrap().len() <= STDERR_TAIL);
        process.kill();
        assert!(process.exited().wait().await.starts_with("signal 9"));
    }

    #[tokio::test]
    async fn only_named_descriptors_are_inherited() {
        let (kept, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        // A descriptor that leaked without close-on-exec must not reach the child.
        let leaked = rustix::pipe::pipe().unwrap();
        let mut launch = shell("cd /proc/self/fd; echo * >&2");
        let number = kept.as_raw_fd();
        launch.inherit.push(kept.into());
        let process = launch.start().await.unwrap();
        let said = process.exited().wait().await;
        let numbers: Vec<&str> = said.trim_start_matches("exit code 0: ").split(' ').collect();
        assert!(numbers.contains(&number.to_string().as_str()), "{said}");
        assert!(!numbers.contains(&leaked.0.as_raw_fd().to_string().as_str()), "{said}");
        assert!(!numbers.contains(&leaked.1.as_raw_fd().to_string().as_str()), "{said}");
    }

    #[tokio::test]
    async fn a_dropped_process_is_dead_and_reaped() {
        let process = shell("sleep 100").start().await.unwrap();
        let proc_dir = format!("/proc/{}", process.id());
        assert!(std::path::Path::new(&proc_dir).exists());
        drop(process);
        assert!(!std::path::Path::new(&proc_dir).exists());
    }

    #[tokio::test]
    async fn root_gives_up_its_identity() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let mut launch =
            shell("grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapEff)' /proc/self/status | tr '\\t\\n' ' ' >&2");
        launch.user = Some(User { uid: 65533, gid: 65532 });
        let process = launch.start().await.unwrap();
        let said = process.exited().wait().await.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("Uid: 65533 65533 65533 65533 Gid: 65532 65532 65532 65532"), "{said}");
        assert!(said.contains("Groups: CapEff: 0000000000000000 NoNewPrivs: 1"), "{said}");
    }
}
