//! What the lab tells the programs under test: `cloister-node`'s command line and the configuration of the shim.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::containerd::target_dir;
use crate::lab::guest;

/// Where the node daemon was built.
pub fn binary() -> Result<PathBuf> {
    Ok(target_dir()?.join("cloister-node"))
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

/// How the daemon is started.
pub fn command(root: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command
        .arg("--root")
        .arg(store(root))
        .arg("--address")
        .arg(socket(root))
        .arg("--containerd")
        .arg(root.join("containerd.sock"))
        .arg("--metrics-address")
        .arg(format!("unix:{}", metrics(root).display()))
        .args(["--log-level", "debug"]);
    Ok(command)
}

/// The environment of containerd, and with it of every shim.
pub fn environment(root: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![("CLOISTER_CONFIG", root.join("config.toml")), ("CLOISTER_KERNEL", guest())]
}

/// Writes the shim's configuration: the helper programs that `make setup` built.
pub fn configure(root: &Path) -> Result<()> {
    let virtiofsd = crate::lab::cache()?.join("tools/virtiofsd-1.13.2/bin/virtiofsd");
    let text = format!("virtiofsd = \"{}\"\n[log]\nlevel = \"debug\"\n", virtiofsd.display());
    Ok(std::fs::write(root.join("config.toml"), text)?)
}
