//! The cgroup of one container, by the files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).

mod update;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Bytes of the name of a cgroup below a container's.
const NAME: usize = 64;

/// A cgroup by its path in the file system.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of a container; the id was checked.
    pub fn of(container: &str) -> Self {
        Self { path: Path::new(ROOT).join("cloister").join(container) }
    }

    /// The cgroup all containers are in.
    pub fn containers() -> Self {
        Self { path: Path::new(ROOT).join("cloister") }
    }

    /// The agent's own.
    pub fn agent() -> Self {
        Self { path: Path::new(ROOT).join("agent") }
    }

    /// Moves this process there and keeps that much memory for it, whatever containers need.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn shelter(&self, bytes: u64) -> Result<()> {
        let what = || format!("keep {bytes} bytes for {}", self.path.display());
        fs::create_dir_all(&self.path).context(what)?;
        fs::write(self.path.join("memory.min"), bytes.to_string()).context(what)?;
        fs::write(self.path.join("cgroup.procs"), "1").context(what)
    }

    /// The cgroup everything is in.
    pub fn root() -> Self {
        Self { path: ROOT.into() }
    }

    /// The cgroup of this name right below, made when it is not there.
    ///
    /// # Errors
    /// When that is no name, or the kernel refuses.
    pub fn below(&self, name: &str) -> Result<Self> {
        let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if name.len() > NAME || !name.bytes().all(byte) {
            return Err(Error::invalid(format!("{name:?} is no name of a cgroup")));
        }
        let path = self.path.join(name);
        fs::create_dir_all(&path).context(|| format!("make the cgroup {}", path.display()))?;
        Ok(Self { path })
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
        let paused = self.is_paused();
        self.set_frozen(true)?;
        self.wait_frozen(deadline);
        let result = send_all(&self.path, signal);
        if !paused {
            self.set_frozen(false)?;
        }
        result
    }

    /// Stops all processes where they are, or lets them go on.
    ///
    /// # Errors
    /// When one does not stop by the deadline: all go on then.
    pub fn freeze(&self, frozen: bool, deadline: Duration) -> Result<()> {
        self.set_frozen(frozen)?;
        if frozen && !self.wait_frozen(deadline) {
            self.set_frozen(false)?;
            let what = format!("processes of {} did not stop within {deadline:?}", self.path.display());
            return Err(Error::new(Kind::Timeout, what));
        }
        Ok(())
    }

    /// Whether all processes are stopped, or are to be.
    pub fn is_paused(&self) -> bool {
        self.number("cgroup.freeze") == 1
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let freeze = self.path.join("cgroup.freeze");
        fs::write(&freeze, if frozen { "1" } else { "0" }).context(|| format!("write {}", freeze.display()))
    }

    fn wait_frozen(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while self.keyed("cgroup.events", "frozen") == 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Removes the cgroup and those below it; they are empty after [`Self::kill`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path).context(|| format!("remove {}", self.path.display()))
    }

    /// A file with one number; 0 for `max` and for a file that the cgroup lacks.
    pub fn number(&self, file: &str) -> u64 {
        self.read(file).trim().parse().unwrap_or(0)
    }

    /// The number of a key in a file of `key number` lines; 0 without one.
    pub fn keyed(&self, file: &str, key: &str) -> u64 {
        value(&self.read(file), key)
    }

    /// The content of a file; empty when the cgroup lacks it.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
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

    #[test]
    fn a_name_leads_to_no_other_cgroup() {
        let cgroup = Cgroup { path: "/nowhere".into() };
        for name in [".", "..", "a/b", "cgroup.procs", "a b", &"x".repeat(NAME + 1)] {
            assert!(matches!(cgroup.below(name), Err(error) if error.kind == Kind::Invalid), "{name:?}");
        }
    }
}
