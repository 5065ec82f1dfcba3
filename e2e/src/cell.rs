//! A set of Linux namespaces that one lab lives in: PID, mount and network.
//!
//! Whatever a lab starts, however it forks and hides, is in the cell's PID namespace; whatever it mounts is in its mount
//! namespace, over a `/run` of its own; bridges, veths and firewall rules are in its network namespace. The kernel ends
//! all of it when the cell's first process ends, and that one ends when the pipe to the test does, so that a test that
//! panics or is killed leaves nothing running.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// What the first process does: its `read` returns when the test is gone; until then bash reaps whoever is orphaned.
/// Mounts are shared among the cell's own namespaces, as systemd leaves them on a node.
const INIT: &str = "set -e
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /var/lib/cni
mount -t tmpfs -o mode=755 tmpfs /var/lib/cni
printf '127.0.0.1 localhost\\n::1 localhost\\n' >/run/hosts
mount --bind /run/hosts /etc/hosts
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
echo ready
read -r _ || true";

/// Namespaces that exist as long as this value.
pub struct Cell {
    unshare: Child,
    pipe: Option<ChildStdin>,
    init: u32,
    /// Mounts that were there when the cell began, some of them hidden by its own `/run`.
    inherited: BTreeSet<String>,
}

/// One process of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number inside the cell.
    pub pid: u32,
    /// Its parent's number inside the cell.
    pub parent: u32,
    /// The command line, arguments separated by blanks.
    pub command: String,
}

impl Cell {
    /// New, empty namespaces with a running loopback interface and forwarding switched on.
    pub fn new() -> Result<Cell> {
        let mut unshare = Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--net", "--mount-proc", "--propagation", "private"])
            .args(["bash", "-c", INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let mut line = String::new();
        let stdout = unshare.stdout.take().context("no pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("no namespaces could be made: {}", unshare.wait()?);
        }
        let pid = unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim().parse().with_context(|| format!("children of unshare: {children:?}"))?;
        let pipe = unshare.stdin.take();
        let mut cell = Cell { unshare, pipe, init, inherited: BTreeSet::new() };
        cell.inherited = cell.mounts()?.into_iter().collect();
        Ok(cell)
    }

    /// The machine's number of the cell's first process.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// The cell's network, for a thread to move into.
    pub fn network(&self) -> Result<File> {
        self.namespace("net")
    }

    /// What is mounted now belongs to the lab and is not in [`Cell::mounts`] any more.
    pub fn keep_mounts(&mut self) -> Result<()> {
        let mounts = self.mounts()?;
        self.inherited.extend(mounts);
        Ok(())
    }

    fn namespace(&self, name: &str) -> Result<File> {
        let path = format!("/proc/{}/ns/{name}", self.init);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }

    /// Runs `work` on a thread that is in the cell's mount and network namespaces, and whose children are in its
    /// PID namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let (mount, net, pid) = (self.namespace("mnt")?, self.namespace("net")?, self.namespace("pid")?);
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    // SAFETY: this thread alone gets its own working folder, which a move of mount namespace
                    // asks for; descriptors stay shared.
                    unsafe { unshare_unsafe(UnshareFlags::FS)? };
                    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
                    move_into_link_name_space(pid.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
                    move_into_link_name_space(mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
                    Ok(work())
                })
                .join()
                .map_err(|panic| std::panic::resume_unwind(panic))
                .and_then(|result: std::io::Result<T>| result.map_err(anyhow::Error::from))
        })
    }

    /// Starts a program in the cell. It is this process's child, and waited for as any other.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let what = format!("{command:?}");
        self.inside(|| command.spawn())?.with_context(|| format!("cannot start {what}"))
    }

    /// Runs a program in the cell to its end; it must succeed. Gives what it wrote.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .inside(|| Command::new(program).args(args).stdin(Stdio::null()).output())?
            .with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} {args:?}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A path as processes in the cell see it, for reading from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(inside.trim_start_matches('/'))
    }

    /// Every process of the cell but its first.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.path("/proc"))? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
            let parent = tail.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut command = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            if command.is_empty() {
                command = format!("[{}]", head.split_once('(').map_or("", |(_, comm)| comm));
            }
            if pid != 1 {
                all.push(Process { pid, parent, command });
            }
        }
        Ok(all)
    }

    /// The processes whose command line contains `words`.
    pub fn find(&self, words: &str) -> Result<Vec<Process>> {
        Ok(self.processes()?.into_iter().filter(|p| p.command.contains(words)).collect())
    }

    /// A process and all that descend from it.
    pub fn family(&self, ancestor: u32) -> Result<Vec<Process>> {
        let all = self.processes()?;
        let parents: BTreeMap<u32, u32> = all.iter().map(|p| (p.pid, p.parent)).collect();
        let descends = |mut pid: u32| loop {
            if pid == ancestor {
                return true;
            }
            match parents.get(&pid) {
                Some(&parent) => pid = parent,
                None => return false,
            }
        };
        Ok(all.into_iter().filter(|p| descends(p.pid)).collect())
    }

    /// Sends a signal, by name or number, to a process by its number inside the cell.
    pub fn kill(&self, pid: u32, signal: &str) -> Result<()> {
        self.run("kill", &[&format!("-{signal}"), &pid.to_string()]).map(|_| ())
    }

    /// The lines of `/proc/mounts` in the cell that were not there when it began.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{}/mounts", self.init))?;
        Ok(text.lines().filter(|&line| !self.inherited.contains(line)).map(str::to_owned).collect())
    }
}

impl Cell {
    /// Ends every process of the cell; with the last one go its mounts and its network.
    pub fn end(&mut self) {
        drop(self.pipe.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match self.unshare.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until `ready` gives something, at most `patience`.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = ready()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(anyhow!("{what}: not within {patience:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
