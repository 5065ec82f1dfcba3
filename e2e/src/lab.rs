//! One private Cloister installation per test: its own store and state, the real binary, the real guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cloister_sandbox::{Agent, Dialer};

/// The checkout, found from where this crate is.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where slow products are kept, by the rule of `scripts/common.sh`.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CLOISTER_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&dir).join("cloister"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".cache/cloister"))
}

/// What a script of `scripts` made and printed the path of; it makes what is not in the cache, which may take minutes.
pub fn made_by(script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(checkout().join("scripts").join(script));
    let made = command.args(arguments).stderr(Stdio::inherit()).output()?;
    if !made.status.success() {
        bail!("{script}: {}", made.status);
    }
    Ok(PathBuf::from(String::from_utf8(made.stdout)?.trim()))
}

/// A docker-archive of Debian; `kind` is `demo` or `large`.
pub fn debian_image(kind: &str) -> Result<PathBuf> {
    made_by("debian-image.sh", &[kind])
}

/// The OCI archive of the builder's image.
pub fn builder_image() -> Result<PathBuf> {
    made_by("builder-image.sh", &[])
}

/// Folder with the guest's kernel and initramfs.
pub fn guest() -> PathBuf {
    std::env::var_os("CLOISTER_KERNEL").map_or(checkout().join("target/microvm"), PathBuf::from)
}

/// The folder of the programs under test.
pub fn target_dir() -> PathBuf {
    if let Some(folder) = std::env::var_os("CLOISTER_BIN_DIR") {
        return folder.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(checkout().join("target"), PathBuf::from);
    target.join("release")
}

/// A helper program from the cache, for example `tool("erofs-utils-trixie", "fsck.erofs")`.
pub fn tool(package: &str, name: &str) -> Result<PathBuf> {
    let path = cache()?.join("tools").join(package).join("bin").join(name);
    if !path.exists() {
        bail!("{} is missing: run make setup", path.display());
    }
    Ok(path)
}

/// A store and state folder of its own, removed with everything in it when dropped.
pub struct Lab {
    root: tempfile::TempDir,
}

impl Lab {
    /// An empty store under the system's temporary folder.
    pub fn new() -> Result<Lab> {
        Ok(Lab { root: tempfile::Builder::new().prefix("cloister-e2e-").tempdir()? })
    }

    /// A store that holds the demo image under the name `debian`.
    pub fn with_debian() -> Result<Lab> {
        let lab = Lab::new()?;
        let archive = debian_image("demo")?;
        lab.ok(&["image", "import", "debian", "-i", &archive.to_string_lossy()])?;
        Ok(lab)
    }

    /// The folder given as `--root`.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The `cloister` command with this lab's root and the guest that `make build` assembled.
    pub fn cloister(&self) -> Command {
        let mut command = Command::new(target_dir().join("cloister"));
        command.env("CLOISTER_KERNEL", guest()).arg("--root").arg(self.root());
        command
    }

    /// Runs the command to its end, whatever it returns.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.cloister().args(args).output().with_context(|| format!("cannot start cloister {args:?}"))
    }

    /// Runs the command to its end and gives the largest resident set it had, in bytes.
    pub fn run_watched(&self, args: &[&str]) -> Result<(Output, u64)> {
        let mut command = self.cloister();
        command.args(args);
        watched(command)
    }

    /// Runs the command, which must succeed, and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        if !output.status.success() {
            bail!("cloister {args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Runs a command to its end and gives the largest resident set it had, in bytes.
pub fn watched(mut command: Command) -> Result<(Output, u64)> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    // Ends by itself: the file loses the line when the process does.
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while let Some(kib) = high_water_kib(&status) {
            peak = peak.max(kib << 10);
            std::thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    let output = child.wait_with_output()?;
    let peak = watcher.join().map_err(|_| anyhow::anyhow!("the watcher died"))?;
    Ok((output, peak))
}

fn high_water_kib(status: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Connects to the agent of a running microVM of a lab, as every command of `cloister` does.
pub async fn agent(root: &Path, name: &str) -> Result<Agent> {
    let record = std::fs::read(root.join("run").join(name).join("state.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let dialer: Dialer = serde_json::from_value(record["dialer"].clone())?;
    let (agent, _) = Agent::connect(dialer, Duration::from_secs(2)).await?;
    Ok(agent)
}
