//! The pod's cgroup on the host: the shim, the machine's monitor and its helpers live in it before the machine boots.
//!
//! Version 1 (one hierarchy for each controller) and version 2 are both plain folders here; limits are kubelet's
//! business, on the folder above.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long the kernel may take to let the last process of a cgroup go.
const EMPTY: Duration = Duration::from_secs(2);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    cpuset: bool,
}

/// The mounted hierarchies that have controllers: those of version 1, or the one of version 2 when it is alone.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for line in mounts.lines() {
        // proc(5): id parent major:minor root mountpoint options [optional …] - type source super-options
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mountpoint) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
        let root = PathBuf::from(mountpoint);
        match kind {
            Some("cgroup") if !first.iter().any(|known: &Hierarchy| known.root == root) => {
                first.push(Hierarchy { root, cpuset: options.split(',').any(|option| option == "cpuset") });
            }
            Some("cgroup2") => second.push(Hierarchy { root, cpuset: false }),
            _ => {}
        }
    }
    if first.is_empty() { second } else { first }
}

/// The relative folder that a runtime specification's `cgroupsPath` means: a path, or `slice:prefix:name` of systemd.
fn relative(cgroups_path: &str) -> PathBuf {
    let mut parts = cgroups_path.split(':');
    let path = match (parts.next(), parts.next(), parts.next()) {
        (Some(slice), Some(prefix), Some(name)) => expand(slice).join(format!("{prefix}-{name}.scope")),
        _ => PathBuf::from(cgroups_path),
    };
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

/// `a-b.slice` is the folder `a.slice/a-b.slice` (systemd.slice(5)).
fn expand(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let mut path = PathBuf::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..end]));
    }
    path
}

/// The folders of a pod's cgroup, which need not exist yet.
pub fn folders(cgroups_path: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let relative = relative(cgroups_path);
    if relative.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    Ok(hierarchies(&mounts).into_iter().map(|hierarchy| hierarchy.root.join(&relative)).collect())
}

/// Makes the folders and moves this process into them.
pub fn join(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
        inherit_cpuset(folder)?;
        enter(folder).with_context(|| format!("cannot enter the cgroup {}", folder.display()))?;
    }
    Ok(())
}

/// Moves this process to the root of the hierarchies it is in because of [`join`].
pub fn leave(folders: &[PathBuf]) {
    for folder in folders {
        if let Some(root) = root_of(folder)
            && let Err(error) = enter(&root)
        {
            tracing::warn!(cgroup = %folder.display(), %error, "cannot leave the pod's cgroup");
        }
    }
}

/// Removes the folders, waiting for what is killed in them.
pub fn remove(folders: &[PathBuf]) -> Result<()> {
    let deadline = Instant::now() + EMPTY;
    for folder in folders {
        loop {
            match fs::remove_dir(folder) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot remove the cgroup {}", folder.display()));
                }
            }
        }
    }
    Ok(())
}

/// The processes in a cgroup.
pub fn members(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn enter(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), "0")
}

/// The mount point above a folder: the topmost one that still has `cgroup.procs`.
fn root_of(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().take_while(|path| path.join("cgroup.procs").exists()).last().map(Path::to_owned)
}

/// A new cpuset of version 1 has neither processors nor memory nodes, and nobody can enter it so.
fn inherit_cpuset(folder: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = folder.join(name);
        let Ok(own) = fs::read_to_string(&file) else { return Ok(()) };
        if !own.trim().is_empty() || root_of(folder).as_deref() == Some(folder) {
            continue;
        }
        let Some(parent) = folder.parent() else { return Ok(()) };
        if fs::read_to_string(parent.join(name)).is_ok_and(|value| value.trim().is_empty()) {
            inherit_cpuset(parent)?;
        }
        let Ok(value) = fs::read_to_string(parent.join(name)) else { return Ok(()) };
        fs::write(&file, value.trim()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn version_2_counts_only_when_it_is_alone() {
        let found = hierarchies(V1);
        assert_eq!(found.len(), 2);
        assert!(found[0].cpuset && !found[1].cpuset);
        let alone = hierarchies("29 23 0:25 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(alone, [Hierarchy { root: "/sys/fs/cgroup".into(), cpuset: false }]);
    }

    #[test]
    fn paths_of_both_drivers_are_understood_and_stay_below_the_root() {
        assert_eq!(relative("/kubepods/pod1/abc"), Path::new("kubepods/pod1/abc"));
        assert_eq!(
            relative("kubepods-besteffort.slice:cri-containerd:abc"),
            Path::new("kubepods.slice/kubepods-besteffort.slice/cri-containerd-abc.scope")
        );
        assert_eq!(relative("/../../etc"), Path::new("etc"));
    }

    #[test]
    fn a_cgroup_is_entered_left_and_removed() {
        let folders = folders(&format!("/cloister-test-{}", std::process::id())).unwrap();
        assert!(!folders.is_empty(), "this test needs a mounted cgroup hierarchy and root");
        join(&folders).unwrap();
        let me = std::process::id();
        assert!(folders.iter().all(|folder| members(folder).contains(&me)));
        leave(&folders);
        remove(&folders).unwrap();
        assert!(folders.iter().all(|folder| !folder.exists()));
    }
}
