//! `state.json` of one virtual machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use cloister_sandbox::Dialer;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FILE: &str = "state.json";
/// No record that this program writes comes near this many bytes.
const MAX: u64 = 4 << 20;

/// What a virtual machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being booted.
    Starting,
    /// Its command runs.
    Running,
    /// Its command has ended.
    Exited,
    /// The machine ended before its command did.
    Failed,
}

impl Status {
    /// Whether a supervisor must be alive in this state.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Failed => "failed",
        })
    }
}

/// Everything other commands need to know about a virtual machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The name, also that of its folder.
    pub name: String,
    /// The image as it was asked for.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When its command began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// What it is doing.
    pub status: Status,
    /// Process id of the supervisor.
    pub pid: Option<u32>,
    /// When the supervisor began, in ticks since the host's boot: an id alone may be used again.
    pub pid_started: Option<u64>,
    /// Exit code of the command, or 125 when the machine failed.
    pub exit_code: Option<u8>,
    /// Why it ended, when not by its command.
    pub reason: Option<String>,
    /// Whether the record goes once the machine has ended.
    pub remove: bool,
    /// How to reach the guest.
    pub dialer: Option<Dialer>,
    /// What more processes in it are given, unless told otherwise.
    pub defaults: Defaults,
}

/// What `exec` and `stop` need to know of the container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Defaults {
    /// `KEY=VALUE` of the container's own process.
    pub env: Vec<String>,
    /// Its working folder.
    pub cwd: String,
    /// Its user, as docker writes it.
    pub user: String,
    /// Whether it is privileged.
    pub privileged: bool,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
}

impl Record {
    /// Reads the record of a folder; `None` when it has none.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let size = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        anyhow::ensure!(size <= MAX, "{} is too large to be a record", path.display());
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(record))
    }

    /// Replaces the record of a folder; readers see the old one or the new one.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let fresh = folder.join(".state.json");
        let write = || -> std::io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether the supervisor is alive, by process id and start time.
    pub fn supervisor_lives(&self) -> bool {
        match (self.pid, self.pid_started) {
            (Some(pid), Some(started)) => process_start(pid) == Some(started),
            _ => false,
        }
    }
}

/// When a process began, in clock ticks since boot; `None` when it is gone or only waits to be collected
/// (proc(5), `/proc/pid/stat` fields 3 and 22).
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may itself contain brackets and blanks.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(name: &str, status: Status) -> Record {
        Record {
            name: name.to_owned(),
            image: "debian".to_owned(),
            command: vec!["true".to_owned()],
            created: Timestamp::now(),
            started: None,
            finished: None,
            status,
            pid: None,
            pid_started: None,
            exit_code: None,
            reason: None,
            remove: false,
            dialer: None,
            defaults: Defaults::default(),
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = std::process::id();
        let started = process_start(me).unwrap();
        let mut record = record("x", Status::Running);
        (record.pid, record.pid_started) = (Some(me), Some(started));
        assert!(record.supervisor_lives());
        record.pid_started = Some(started + 1);
        assert!(!record.supervisor_lives());
    }
}
