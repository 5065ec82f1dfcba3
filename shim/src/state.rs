//! What is on disk about a pod: everything that must be cleaned up, written before it exists.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The name of the file in a pod's folder.
const FILE: &str = "state.json";

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The shim runs; nothing else exists.
    New,
    /// Cgroups, taps and processes may exist.
    Starting,
    /// The machine runs.
    Running,
    /// What exists is being taken apart.
    Stopping,
}

/// A process by a name that is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (field 22 of proc(5)'s stat).
    pub started: u64,
}

impl ProcessId {
    /// The process with this number now.
    pub fn of(pid: u32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }

    /// Whether that very process exists.
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// The start time of a living process, a zombie not counted.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How far the pod has come.
    pub phase: Phase,
    /// What Kubernetes calls it: its namespace, a slash, its name.
    #[serde(default)]
    pub name: Option<String>,
    /// The process that serves it.
    pub shim: ProcessId,
    /// The monitor of its machine.
    pub vmm: Option<ProcessId>,
    /// Who the monitor runs as: nobody else does.
    pub uid: Option<u32>,
    /// The shim's socket.
    pub socket: PathBuf,
    /// The pod's network namespace.
    pub netns: Option<PathBuf>,
    /// Taps in that namespace.
    pub taps: Vec<String>,
    /// Cgroups of the pod's processes, as folders.
    pub cgroups: Vec<PathBuf>,
}

/// A pod's folder with its state.
#[derive(Debug)]
pub struct StateFile {
    folder: PathBuf,
    state: State,
}

impl StateFile {
    /// Makes the folder of a pod and writes its first state.
    pub fn create(folder: PathBuf, state: State) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let file = Self { folder, state };
        file.write()?;
        Ok(file)
    }

    /// The present state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state, on disk first of all.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        change(&mut self.state);
        self.write()
    }

    fn write(&self) -> Result<()> {
        let path = self.folder.join(FILE);
        let temporary = self.folder.join(".state.json");
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&serde_json::to_vec(&self.state)?)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads the state in a pod's folder; `None` when there is none, or none that can be read.
pub fn read(folder: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            phase: Phase::New,
            name: None,
            shim: ProcessId::of(std::process::id()).unwrap(),
            vmm: None,
            uid: None,
            socket: "/run/s".into(),
            netns: None,
            taps: Vec::new(),
            cgroups: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = StateFile::create(folder.path().join("a/b"), state()).unwrap();
        file.update(|state| state.taps.push("tap0".to_owned())).unwrap();
        let read = read(&folder.path().join("a/b")).unwrap();
        assert_eq!(&read, file.state());
        assert_eq!(read.taps, ["tap0"]);
    }

    #[test]
    fn half_a_file_is_no_state() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_none());
        fs::write(folder.path().join(FILE), "{\"phase\":").unwrap();
        assert!(read(folder.path()).is_none());
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { started: me.started + 1, ..me }.is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        child.wait().unwrap();
        assert!(ProcessId::of(id).is_none());
    }
}
