//! The programs of this machine that a virtual machine needs, and who runs them.

use std::path::PathBuf;

use anyhow::{Result, bail};
use cloister_sandbox::programs;
use cloister_vmm::Host;

pub use cloister_sandbox::programs::{firmware, qemu};

use crate::paths;

/// The daemon that shares folders.
pub fn virtiofsd() -> Option<PathBuf> {
    programs::virtiofsd().or_else(|| built("virtiofsd"))
}

/// The daemon that speaks for a guest without a network of its own.
pub fn passt() -> Option<PathBuf> {
    programs::passt().or_else(|| built("passt"))
}

/// The newest one that the project's set-up script put there.
fn built(name: &str) -> Option<PathBuf> {
    let tools = std::fs::read_dir(paths::cache()?.join("tools")).ok()?;
    let mut found: Vec<PathBuf> = tools
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")))
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// Everything, for a machine that uses shares or not.
pub fn find(shares: bool) -> Result<Host> {
    let Some(qemu) = qemu() else { bail!("QEMU is not installed; `cloister doctor` says how to get it") };
    let Some(firmware) = firmware() else {
        bail!("QEMU's firmware qboot.rom is not installed; `cloister doctor` says how to get it")
    };
    let virtiofsd = match virtiofsd() {
        Some(virtiofsd) => virtiofsd,
        None if shares => {
            bail!("virtiofsd, which -v needs, is not installed; `cloister doctor` says how to get it")
        }
        None => PathBuf::from("virtiofsd"),
    };
    Ok(Host { qemu, firmware, virtiofsd, passt: passt(), user: programs::user() })
}
