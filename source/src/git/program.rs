//! One run of git: nothing of this machine's configuration, no hooks, no questions, no other protocols, bounded in time and
//! size, and as nobody where this process is root.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};

use crate::archive::{local, scratch};
use crate::watch::Watch;
use crate::{Error, Result};

/// User and group without rights of their own, on every distribution; ssh insists on a user with a name.
pub(super) const NOBODY: u32 = 65534;
/// How often to look whether it has ended.
const TICK: Duration = Duration::from_millis(20);
/// Bytes of what it complains about.
const MAX_COMPLAINT: u64 = 16 << 10;
/// Set for every run.
const SETTINGS: [(&str, &str); 12] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.bigFileThreshold", "16m"),
    // The working tree that an archive stands for is that of an ordinary user.
    ("tar.umask", "0022"),
    ("credential.helper", ""),
    ("fetch.unpackLimit", "1"),
    ("fetch.writeCommitGraph", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("pack.threads", "1"),
    ("protocol.version", "2"),
    ("submodule.recurse", "false"),
];
/// Variables that are handed on: how this node reaches the world.
pub(super) const PROXIES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"];

/// How git is run for one source.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// The bare repository.
    pub(super) repository: PathBuf,
    /// For files without a name.
    pub(super) work: &'a Path,
    pub(super) watch: &'a Watch,
}

/// What came of a run that ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// What it wrote, to be read from the start.
    pub(super) output: File,
    /// What it complained about, in one line.
    pub(super) complaint: String,
}

impl Program<'_> {
    /// Runs it with settings beside those of all runs; no file that it writes gets larger than `largest` bytes.
    pub(super) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(
        &self,
        args: I,
        settings: &[(String, String)],
        ssh: Option<&str>,
        largest: u64,
    ) -> Result<Ended> {
        let (output, complaints) = (scratch(self.work)?, scratch(self.work)?);
        let duplicate = |file: &File| file.try_clone().map_err(|error| local("running git", &error));
        let mut command = Command::new("git");
        command.args(args).env_clear().current_dir(&self.repository).process_group(0);
        command.stdin(Stdio::null()).stdout(duplicate(&output)?).stderr(duplicate(&complaints)?);
        for name in PROXIES.into_iter().chain(["PATH"]) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("HOME", &self.repository)
            .env("GIT_DIR", &self.repository)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "false")
            .env("GIT_ALLOW_PROTOCOL", "https:ssh")
            .env("GIT_HTTP_LOW_SPEED_LIMIT", "1000")
            .env("GIT_HTTP_LOW_SPEED_TIME", "60")
            .env("GIT_SSH_VARIANT", "ssh")
            .env("GIT_SSH_COMMAND", ssh.unwrap_or("false"));
        let fixed = SETTINGS.iter().map(|(key, value)| (*key, *value));
        let all = fixed.chain(settings.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let mut count = 0;
        for (key, value) in all {
            command.env(format!("GIT_CONFIG_KEY_{count}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let limit = Rlimit { current: Some(largest), maximum: Some(largest) };
        // SAFETY: between fork and exec only two system calls are made, which neither allocate nor lock.
        unsafe {
            command.pre_exec(move || {
                // Else a file that gets too large would end its writer without a word.
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                Ok(setrlimit(Resource::Fsize, limit)?)
            });
        }
        let mut child = command.spawn().map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "it is not installed on this node",
                io::ErrorKind::PermissionDenied => "its folder is closed to the user nobody",
                _ => "",
            };
            Error::unavailable(format!("source.git: starting git: {error} {why}"))
        })?;
        let status = self.wait(&mut child)?;
        let complaint = complaint(complaints).map_err(|error| local("reading git's answer", &error))?;
        let mut output = output;
        output.seek(SeekFrom::Start(0)).map_err(|error| local("reading git's answer", &error))?;
        Ok(Ended { status, output, complaint })
    }

    /// Waits for its end, or ends it with all that it has started.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait().map_err(|error| local("waiting for git", &error))? {
                return Ok(status);
            }
            if let Err(error) = self.watch.check() {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    // It is not waited for yet, so the number is still its own.
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                return Err(error);
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Ended {
    /// Whether it succeeded.
    pub(super) fn success(&self) -> bool {
        self.status.success()
    }

    /// Whether a file would have become too large.
    pub(super) fn too_large(&self) -> bool {
        self.complaint.contains("File too large")
    }

    /// All that it wrote, of at most `limit` bytes.
    pub(super) fn text(self, limit: u64) -> Result<String> {
        let mut bytes = Vec::new();
        let read = self.output.take(limit).read_to_end(&mut bytes);
        read.map_err(|error| local("reading git's answer", &error))?;
        String::from_utf8(bytes).map_err(|_| Error::invalid("source.git: a name is not in UTF-8"))
    }
}

fn complaint(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(MAX_COMPLAINT).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.collect::<Vec<_>>().join("; "))
}
