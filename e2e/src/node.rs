//! What the lab tells the programs under test: `cloister-node`'s command line and the configuration of the shim.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::http;
use crate::lab::{guest, target_dir};

/// Where the node daemon was built.
pub fn binary() -> PathBuf {
    target_dir().join("cloister-node")
}

/// The daemon's socket in a lab.
pub fn socket(root: &Path) -> PathBuf {
    root.join("node.sock")
}

/// The daemon's folder in a lab: images, snapshots.
pub fn store(root: &Path) -> PathBuf {
    root.join("images")
}

/// Where the daemon serves its metrics.
pub fn metrics(root: &Path) -> PathBuf {
    root.join("metrics.sock")
}

/// The page that the daemon serves, in Prometheus' text format.
pub fn page(root: &Path) -> Result<String> {
    http::get(UnixStream::connect(metrics(root))?, "/metrics")
}

/// The value of one series of a page, labels included in its name.
pub fn value(page: &str, series: &str) -> Result<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.with_context(|| format!("no {series}"))?.parse().with_context(|| series.to_owned())
}

/// How the daemon is started.
pub fn command(root: &Path) -> Result<Command> {
    let mut command = Command::new(binary());
    command
        .arg("--root")
        .arg(store(root))
        .arg("--address")
        .arg(socket(root))
        .arg("--containerd")
        .arg(root.join("containerd.sock"))
        .args(["--log-level", "debug"]);
    if settings(root).exists() {
        command.arg("--config").arg(settings(root));
    }
    if !serves_elsewhere(root) {
        command.arg("--metrics-address").arg(format!("unix:{}", metrics(root).display()));
    }
    Ok(command)
}

/// The daemon's file in a lab; read when there is one.
pub fn settings(root: &Path) -> PathBuf {
    root.join("node.toml")
}

/// Whether that file has an address for metrics.
pub fn serves_elsewhere(root: &Path) -> bool {
    std::fs::read_to_string(settings(root)).is_ok_and(|text| text.contains("metrics_address"))
}

/// The environment of containerd, and with it of every shim.
pub fn environment(root: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![("CLOISTER_CONFIG", root.join("config.toml"))]
}

/// What a test may change of the shim's configuration; the log's part is read again by a running shim on SIGUSR1.
pub struct Shim<'a> {
    /// Folder of the guest's kernel and initramfs.
    pub kernel: PathBuf,
    /// How long a guest may take to come up.
    pub boot_seconds: u32,
    /// The table `log`.
    pub log: &'a str,
}

impl Default for Shim<'_> {
    fn default() -> Self {
        Self { kernel: guest(), boot_seconds: 60, log: "level = \"debug\"" }
    }
}

/// Writes the shim's configuration: also the helper programs that `make setup` built.
pub fn configure(root: &Path, shim: &Shim<'_>) -> Result<()> {
    let virtiofsd = crate::lab::cache()?.join("tools/virtiofsd-1.13.2/bin/virtiofsd");
    let text = format!(
        "virtiofsd = {virtiofsd:?}\nkernel = {:?}\ndisks = {:?}\nboot_seconds = {}\n[log]\n{}\n",
        shim.kernel,
        root.join("disks"),
        shim.boot_seconds,
        shim.log
    );
    Ok(std::fs::write(root.join("config.toml"), text)?)
}
