//! Finding the guest kernel: a folder with `vmlinux`, `initramfs` and `kernel.json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cloister_sandbox::Kernel;
use serde::Serialize;

use crate::paths::{self, Root};

/// Where packages put the kernel.
const INSTALLED: [&str; 2] = ["/usr/local/share/cloister/kernel", "/usr/share/cloister/kernel"];

/// A guest kernel of this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// `MAJOR.MINOR.PATCH-DATE-GITSHA`, or the folder's name without one.
    pub version: String,
    /// The folder.
    pub folder: PathBuf,
    /// Bytes of kernel and initramfs together.
    pub size: u64,
    /// What `kernel.json` says.
    pub about: serde_json::Value,
}

/// Every complete kernel, best first: `$CLOISTER_KERNEL` before those of the root, installed and built
/// ones, new before old.
pub fn list(root: &Root) -> Vec<Found> {
    let mut all = Vec::new();
    for place in places(root) {
        let mut here: Vec<Found> = folders(&place).iter().filter_map(|folder| look(folder)).collect();
        here.sort_by_key(|found| std::cmp::Reverse(version_key(&found.version)));
        for found in here {
            if !all.iter().any(|known: &Found| known.folder == found.folder) {
                all.push(found);
            }
        }
    }
    all
}

/// The kernel to boot: the folder that was asked for, or the best one.
pub fn choose(root: &Root, asked: Option<&Path>) -> Result<Kernel> {
    let found = match asked {
        Some(folder) => match look(folder) {
            Some(found) => found,
            None => {
                bail!("{} holds no guest kernel: it needs the files vmlinux and initramfs", folder.display())
            }
        },
        None => match list(root).into_iter().next() {
            Some(found) => found,
            None => bail!(
                "no guest kernel found: build one (`make kernel`), or name a folder with vmlinux and initramfs by --kernel"
            ),
        },
    };
    Ok(Kernel { vmlinux: found.folder.join("vmlinux"), initramfs: found.folder.join("initramfs") })
}

fn places(root: &Root) -> Vec<PathBuf> {
    let asked = std::env::var_os("CLOISTER_KERNEL").map(PathBuf::from);
    let mut places: Vec<PathBuf> = asked.into_iter().chain([root.kernels()]).collect();
    places.extend(INSTALLED.iter().map(PathBuf::from));
    places.extend(paths::cache().map(|cache| {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
        cache.join(format!("kernel/default-{arch}"))
    }));
    places
}

/// A place is one kernel's folder or a folder of such.
fn folders(place: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = place.canonicalize().into_iter().collect();
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    all.extend(
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .filter_map(|path| path.canonicalize().ok()),
    );
    all
}

fn look(folder: &Path) -> Option<Found> {
    let size = |name: &str| {
        fs::metadata(folder.join(name)).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
    };
    let size = size("vmlinux")? + size("initramfs")?;
    let text = fs::read(folder.join("kernel.json")).unwrap_or_default();
    let about: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let name = || folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = about.get("version").and_then(|version| version.as_str()).map_or_else(name, str::to_owned);
    let folder = folder.canonicalize().ok()?;
    Some(Found { version, folder, size, about })
}

/// Numbers of a version compare as numbers.
fn version_key(version: &str) -> (Vec<u64>, String) {
    let numbers = version
        .split('-')
        .next()
        .unwrap_or_default()
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect();
    (numbers, version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_then_by_date() {
        assert!(version_key("0.10.0-20250101-abc") > version_key("0.9.0-20260101-abc"));
        assert!(version_key("0.1.0-20260102-abc") > version_key("0.1.0-20260101-fff"));
    }
}
