//! The cgroup of one container, by the files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_protocol::v1::StatsResponse;

use crate::boot::CGROUP_ROOT;
use crate::error::{Context, Error, Kind, Result};

/// A cgroup by its path in the file system.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of a container; the id was checked.
    pub fn of(container: &str) -> Self {
        Self { path: Path::new(CGROUP_ROOT).join("cloister").join(container) }
    }

    /// The cgroup everything is in.
    pub fn root() -> Self {
        Self { path: CGROUP_ROOT.into() }
    }

    /// The path an OCI spec has for it.
    pub fn spec_path(container: &str) -> PathBuf {
        Path::new("/cloister").join(container)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Processes killed for lack of memory since the cgroup exists; 0 when it is gone.
    pub fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill")
    }

    /// Kills all processes and waits until they are gone.
    ///
    /// # Errors
    /// When some are left at the deadline.
    pub fn kill(&self, deadline: Duration) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let kill = self.path.join("cgroup.kill");
        fs::write(&kill, "1").context(|| format!("write {}", kill.display()))?;
        let end = Instant::now() + deadline;
        while self.keyed("cgroup.events", "populated") != 0 {
            if Instant::now() > end {
                let what = format!("processes of {} outlive SIGKILL for {deadline:?}", self.path.display());
                return Err(Error::new(Kind::Timeout, what));
            }
            // The kernel has no call that waits for this; it takes as long as the slowest exit.
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Sends a signal to all processes, those of the cgroups below included.
    ///
    /// # Errors
    /// When the cgroup cannot be read or frozen.
    pub fn signal(&self, signal: i32, deadline: Duration) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill(deadline);
        }
        // Frozen, so that no process forks or ends between reading the list and the signal.
        let freeze = self.path.join("cgroup.freeze");
        fs::write(&freeze, "1").context(|| format!("write {}", freeze.display()))?;
        let end = Instant::now() + deadline;
        while self.keyed("cgroup.events", "frozen") == 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let result = send_all(&self.path, signal);
        fs::write(&freeze, "0").context(|| format!("write {}", freeze.display()))?;
        result
    }

    /// Removes the cgroup and those below it; they are empty after [`Self::kill`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path).context(|| format!("remove {}", self.path.display()))
    }

    /// The counters a host asks for; files that a cgroup lacks count as 0.
    pub fn stats(&self) -> StatsResponse {
        let memory = match self.number("memory.current") {
            0 if self.path == Path::new(CGROUP_ROOT) => used_memory(),
            bytes => bytes,
        };
        StatsResponse {
            cpu_usage_micros: self.keyed("cpu.stat", "usage_usec"),
            memory_bytes: memory,
            memory_peak_bytes: self.number("memory.peak"),
            memory_limit_bytes: self.number("memory.max"),
            memory_working_set_bytes: memory.saturating_sub(self.keyed("memory.stat", "inactive_file")),
            oom_kills: self.oom_kills(),
            pids: self.number("pids.current"),
            ..StatsResponse::default()
        }
    }

    fn number(&self, file: &str) -> u64 {
        let content = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        content.trim().parse().unwrap_or(0)
    }

    fn keyed(&self, file: &str, key: &str) -> u64 {
        value(&fs::read_to_string(self.path.join(file)).unwrap_or_default(), key)
    }
}

fn send_all(path: &Path, signal: i32) -> Result<()> {
    let list = path.join("cgroup.procs");
    let pids = fs::read_to_string(&list).context(|| format!("read {}", list.display()))?;
    for pid in pids.lines().filter_map(|line| line.parse::<libc::pid_t>().ok()).filter(|pid| *pid > 1) {
        // SAFETY: a plain system call. A process that ended meanwhile needs no signal.
        unsafe { libc::kill(pid, signal) };
    }
    let entries = fs::read_dir(path).context(|| format!("list {}", path.display()))?;
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        send_all(&entry.path(), signal)?;
    }
    Ok(())
}

/// The number after `key` in lines of `key number`; 0 without one.
fn value(content: &str, key: &str) -> u64 {
    content
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The whole guest's memory in use: the root cgroup has no `memory.current`.
fn used_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    kib("MemTotal:").saturating_sub(kib("MemFree:")) * 1024
}

/// Removes the folders below first. The processes were reaped just now, so a cgroup may still be busy for a moment.
fn remove(path: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(path) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(value(events, "oom_kill"), 2);
        assert_eq!(value(events, "oom"), 3);
        assert_eq!(value(events, "kill"), 0);
    }
}
