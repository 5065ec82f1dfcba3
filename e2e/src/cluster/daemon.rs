//! A program that runs as long as its cluster or until a test ends it, and may be started again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};

use crate::cell::Cell;
use crate::containerd::stop;

/// A command line, its log and, while it runs, its process.
pub struct Daemon {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// A program that is not started yet; its log is `NAME.log` in `folder`.
    pub fn new(name: &'static str, program: &Path, folder: &Path) -> Daemon {
        let log = folder.join(format!("{name}.log"));
        Daemon {
            name,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log,
            child: Mutex::default(),
        }
    }

    /// With an option and its value.
    #[must_use]
    pub fn option(self, name: &str, value: &str) -> Daemon {
        self.flag(&format!("{name}={value}"))
    }

    /// With an option whose value is a file.
    #[must_use]
    pub fn path(self, name: &str, value: &Path) -> Daemon {
        self.option(name, &value.to_string_lossy())
    }

    /// With a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: &Path) -> Daemon {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// With an argument.
    #[must_use]
    pub fn flag(mut self, argument: &str) -> Daemon {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The text of a systemd unit that is this program.
    pub fn unit(&self) -> String {
        let environment =
            self.environment.iter().map(|(name, value)| format!("Environment={name}={}\n", value.display()));
        format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nKillMode=process\n{}ExecStart={} {}\nStandardOutput=append:{log}\n\
             StandardError=append:{log}\n",
            environment.collect::<String>(),
            self.program.display(),
            self.arguments.join(" "),
            log = self.log.display(),
        )
    }

    /// The program's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Starts the program in a cell; its log goes on where an earlier run has ended.
    pub fn start(&self, cell: &Cell) -> Result<()> {
        let mut slot = self.slot();
        if slot.is_some() {
            bail!("{} runs already", self.name);
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        logged(&mut command, &self.log)?;
        *slot = Some(cell.spawn(&mut command)?);
        Ok(())
    }

    /// Fails when the program was started and has ended, with what it said last.
    pub fn check(&self) -> Result<()> {
        if let Some(child) = self.slot().as_mut()
            && let Some(status) = child.try_wait()?
        {
            bail!("{} ended: {status}\n{}", self.name, self.log_tail(20));
        }
        Ok(())
    }

    /// Ends the program, kindly or with `kill -9`, and waits for it.
    pub fn stop(&self, kill: bool) -> Result<()> {
        stop(&self.child, kill)
    }

    /// The host's number of the running process.
    pub fn pid(&self) -> Option<u32> {
        self.slot().as_ref().map(Child::id)
    }

    /// The resident memory of the running process, in bytes.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a command's output to the end of a file.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options().create(true).append(true).open(log)?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok(())
}

/// The last lines of a file.
pub fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
