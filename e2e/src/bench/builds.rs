//! The same Dockerfiles in a microVM and through plain `buildctl` and buildkitd on the host, with the same source date: equal
//! digests, and where the time goes.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Lab, builder_image, made_by};

/// When everything is said to be of, in seconds since 1970.
const DATE: &str = "SOURCE_DATE_EPOCH=1700000000";
/// How long buildkitd may take to listen.
const READY: Duration = Duration::from_secs(60);

/// A stage to stand on: nothing but a busybox.
const BASE: &str = "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// Dockerfiles by name.
const CASES: [(&str, &str); 3] = [
    ("copy", "FROM base\nCOPY busybox /copy\n"),
    ("steps", "FROM base\nENV A=b\nRUN echo one >/one\nRUN echo two >/two && rm /one\nWORKDIR /srv\n"),
    (
        "stages",
        "FROM base AS make\nRUN --mount=type=cache,target=/c seq 20000 >/list\nFROM base\nCOPY --link --from=make /list /srv/list\n\
         COPY <<text /greeting\nhello\ntext\nCMD [\"cat\", \"/greeting\"]\n",
    ),
];

/// One Dockerfile's figures.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub case: &'static str,
    /// The digest that both builders gave the image.
    pub digest: String,
    /// Seconds of the parts in the microVM, by name.
    pub parts: Vec<(String, f64)>,
    /// Seconds of the whole `cloister build`.
    pub whole: f64,
    /// Seconds of `buildctl build` with a daemon that runs already and an empty cache.
    pub buildctl: f64,
    /// Seconds until that daemon listened.
    pub daemon: f64,
}

/// Builds all Dockerfiles with both.
///
/// # Errors
/// When a build fails, or the digests differ.
pub fn run() -> Result<Vec<Row>> {
    let programs = made_by("buildkit.sh", &[])?;
    let builder = builder_image()?;
    CASES.iter().map(|(case, dockerfile)| one(case, dockerfile, &programs, &builder)).collect()
}

/// A table of them.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| case | ");
    let Some(first) = rows.first() else { return text };
    first.parts.iter().for_each(|(name, _)| text.push_str(&format!("{name} | ")));
    text.push_str("whole | buildkitd listens | buildctl | digest |\n|");
    text.push_str(&" --- |".repeat(first.parts.len() + 5));
    for row in rows {
        text.push_str(&format!("\n| {} | ", row.case));
        row.parts.iter().for_each(|(_, seconds)| text.push_str(&format!("{seconds:.2} s | ")));
        let digest = row.digest.get(..19).unwrap_or(&row.digest);
        text.push_str(&format!(
            "{:.2} s | {:.2} s | {:.2} s | {digest}… both |",
            row.whole, row.daemon, row.buildctl
        ));
    }
    text
}

fn one(case: &'static str, dockerfile: &str, programs: &Path, builder: &Path) -> Result<Row> {
    let folder = tempfile::Builder::new().prefix("cloister-bench-").tempdir()?;
    let context = folder.path().join("context");
    fs::create_dir(&context)?;
    fs::copy(programs.join("busybox"), context.join("busybox"))?;
    fs::write(context.join("Dockerfile"), format!("{BASE}{dockerfile}"))?;

    let lab = Lab::new()?;
    let build = |options: &[&str]| -> Result<(f64, String)> {
        let mut command = lab.cloister();
        command.args(["--output", "json", "build", "--timings", "--progress", "plain", "--build-arg", DATE]);
        let begun = Instant::now();
        let output =
            command.arg("--builder").arg(builder).args(options).arg(&context).output().context("cloister")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "cloister build: {said}");
        Ok((begun.elapsed().as_secs_f64(), said))
    };
    // The first brings the builder image into the store.
    let archive = folder.path().join("vm.tar");
    build(&["--cache-key", "first", "-o", &format!("type=oci,dest={}", archive.display())])?;
    let (whole, said) = build(&["-t", case])?;

    let daemon = Daemon::start(programs, folder.path())?;
    let host = folder.path().join("host.tar");
    let begun = Instant::now();
    daemon.build(&context, &host)?;
    let buildctl = begun.elapsed().as_secs_f64();
    let (digest, theirs) = (digest(&archive)?, digest(&host)?);
    ensure!(digest == theirs, "{case}: the microVM made {digest}, the host {theirs}");
    Ok(Row { case, digest, parts: parts(&said)?, whole, buildctl, daemon: daemon.ready.as_secs_f64() })
}

/// The parts that `--timings` tells, in seconds.
fn parts(said: &str) -> Result<Vec<(String, f64)>> {
    let line = said.lines().rfind(|line| line.starts_with("{\"timings\"")).context("no timings")?;
    let value: Value = serde_json::from_str(line)?;
    let parts = value["timings"].as_object().context("no timings")?;
    // In the order in which they happen.
    let order = ["images", "boot", "ready", "solve", "export", "import"];
    let seconds = |name: &str| Some((name.to_owned(), parts.get(name)?.as_f64()? / 1e6));
    Ok(order.into_iter().filter_map(seconds).collect())
}

/// The digest of the one image in an OCI archive.
fn digest(archive: &Path) -> Result<String> {
    let mut tar = tar::Archive::new(File::open(archive)?);
    for entry in tar.entries()? {
        let entry = entry?;
        if entry.path()?.as_os_str() == "index.json" {
            let index: Value = serde_json::from_reader(entry)?;
            return Ok(index["manifests"][0]["digest"].as_str().context("no digest")?.to_owned());
        }
    }
    bail!("{} has no index.json", archive.display())
}

/// A buildkitd of the host in its own PID and mount namespaces; it ends with this value.
struct Daemon {
    process: Child,
    programs: PathBuf,
    address: String,
    ready: Duration,
}

impl Daemon {
    fn start(programs: &Path, folder: &Path) -> Result<Self> {
        let socket = folder.join("buildkitd.sock");
        let log = File::create(folder.join("buildkitd.log"))?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let begun = Instant::now();
        let address = format!("unix://{}", socket.display());
        let process = Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--mount-proc", "--propagation", "private", "--kill-child"])
            .arg(programs.join("buildkitd"))
            .args(["--addr", &address, "--oci-worker-net=host", "--containerd-worker=false"])
            .args(["--oci-worker-snapshotter=overlayfs", "--root"])
            .arg(folder.join("root"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("buildkitd")?;
        let mut daemon = Self { process, programs: programs.to_owned(), address, ready: Duration::ZERO };
        while UnixStream::connect(&socket).is_err() {
            ensure!(begun.elapsed() < READY, "buildkitd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.ready = begun.elapsed();
        Ok(daemon)
    }

    fn build(&self, context: &Path, archive: &Path) -> Result<()> {
        let output = Command::new(self.programs.join("buildctl"))
            .args(["--addr", &self.address, "build", "--progress", "plain", "--frontend", "dockerfile.v0"])
            .args(["--opt", &format!("build-arg:{DATE}")])
            .arg("--local")
            .arg(format!("context={}", context.display()))
            .arg("--local")
            .arg(format!("dockerfile={}", context.display()))
            .arg("--output")
            .arg(format!("type=oci,dest={},rewrite-timestamp=true", archive.display()))
            .output()
            .context("buildctl")?;
        ensure!(output.status.success(), "buildctl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The namespace's first process goes with it, and with that one all others.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
