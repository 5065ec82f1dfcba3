//! Removes what a lab leaves on disk and in the cgroup tree, also for labs whose test was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// How the folders and cgroups of labs are named.
pub const PREFIX: &str = "cloister-pods-";

/// Writes down whose lab this is, at once: half of it would be nobody's.
pub fn claim(root: &Path) -> Result<()> {
    let (pid, half) = (std::process::id(), root.join("owner.half"));
    fs::write(&half, format!("{pid} {}", start_time(pid).unwrap_or_default()))?;
    Ok(fs::rename(half, root.join("owner"))?)
}

/// Removes the folders and cgroups of labs whose owner is gone; their namespaces went with it.
pub fn dead_labs() -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(owner) = fs::read_to_string(entry.path().join("owner")) else { continue };
        let alive = owner
            .split_once(' ')
            .is_some_and(|(pid, start)| pid.parse().ok().and_then(start_time).as_deref() == Some(start));
        if !alive {
            cgroups(&name);
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// When a process began, in clock ticks after boot, so that a number used again is not taken for the old process.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// The folders of a cgroup in every hierarchy that has it.
pub fn cgroup_folders(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([root.to_path_buf()]).map(|hierarchy| hierarchy.join(name));
    all.filter(|folder| folder.is_dir()).collect()
}

/// Removes a lab's cgroup with everything below it, from every hierarchy.
pub fn cgroups(name: &str) {
    for folder in cgroup_folders(name) {
        remove_cgroup(&folder);
    }
}

fn remove_cgroup(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(folder) {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
}
