//! Where in a container its mounts go.
//!
//! An image may have made a link of such a place, also one that leads to nothing yet: `/etc/resolv.conf` of many
//! distributions. The runtime follows links but does not make what they lead to, so each place is resolved here, inside
//! the image's root, and the runtime gets a path without links.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, readlinkat};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::inroot::Root;

/// Links that are followed for one place, as in the kernel.
const MOST_LINKS: usize = 40;
/// Files of /proc that may be covered, as runc has them: what lxcfs and its like provide.
const COVERED: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Puts resolved places into a spec whose root is stacked and not yet mounted on.
///
/// # Errors
/// When links go round in circles, or a place is in /proc where nothing may be mounted.
pub fn resolve(spec: &mut Spec, root: &Root) -> Result<()> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut before: Vec<PathBuf> = Vec::new();
    for mount in &mut mounts {
        let place = resolve_one(root, mount.destination(), &before)?;
        let of_kernel =
            matches!(mount.typ().as_deref(), Some("proc" | "sysfs" | "cgroup" | "cgroup2" | "mqueue"));
        check_proc(&place, of_kernel)?;
        before.push(place.clone());
        mount.set_destination(place);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn check_proc(place: &Path, of_kernel: bool) -> Result<()> {
    if of_kernel || !place.starts_with("/proc") || COVERED.iter().any(|file| place == Path::new(file)) {
        return Ok(());
    }
    Err(Error::invalid(format!("nothing can be mounted at {}: it is inside /proc", place.display())))
}

/// The path without links that `place` means. What is below an earlier mount is not the image's to say.
fn resolve_one(root: &Root, place: &Path, before: &[PathBuf]) -> Result<PathBuf> {
    let what = || format!("resolve {} in the container", place.display());
    let mut ahead: VecDeque<OsString> = parts(place);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(part);
        if before.contains(&done) {
            done.extend(ahead);
            return Ok(done);
        }
        let Some(target) = link(root, &done).context(what)? else { continue };
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP).context(what);
        }
        done.pop();
        if target.is_absolute() {
            done = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            ahead.push_front(part);
        }
    }
    Ok(done)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let named = |part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(named).collect()
}

/// Where a link leads; `None` for what is none or does not exist.
fn link(root: &Root, path: &Path) -> rustix::io::Result<Option<PathBuf>> {
    let found = match root.openat2(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(found) => found,
        // A file in the way is the runtime's to report.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    match readlinkat(&found, "", Vec::new()) {
        Ok(target) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_and_what_they_lead_to_need_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("run")).unwrap();
        symlink("../run/systemd/stub.conf", at("etc/resolv.conf")).unwrap();
        symlink("../../../../srv/up", at("up")).unwrap();
        fs::create_dir(at("var")).unwrap();
        symlink("/run", at("var/run")).unwrap();
        symlink("two", at("one")).unwrap();
        symlink("one", at("two")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let resolved =
            |place: &str| resolve_one(&root, Path::new(place), &[]).map(|path| path.display().to_string());
        assert_eq!(resolved("/etc/resolv.conf").unwrap(), "/run/systemd/stub.conf");
        assert_eq!(resolved("/up").unwrap(), "/srv/up");
        assert_eq!(resolved("/var/run/secrets/token").unwrap(), "/run/secrets/token");
        assert_eq!(resolved("/new/../../data/./x").unwrap(), "/data/x");
        assert!(resolved("/one/x").unwrap_err().message.contains("/one/x"));
    }

    #[test]
    fn what_is_below_an_earlier_mount_is_left_to_the_runtime() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        symlink("/elsewhere", folder.path().join("data/link")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let before = [PathBuf::from("/data")];
        let resolved = resolve_one(&root, Path::new("/data/link/x"), &before).unwrap();
        assert_eq!(resolved, Path::new("/data/link/x"));
    }

    #[test]
    fn proc_is_covered_by_itself_and_by_few_files() {
        assert!(check_proc(Path::new("/proc"), true).is_ok());
        assert!(check_proc(Path::new("/proc/cpuinfo"), false).is_ok());
        assert!(check_proc(Path::new("/process"), false).is_ok());
        for place in ["/proc", "/proc/1", "/proc/self/attr"] {
            assert!(check_proc(Path::new(place), false).unwrap_err().message.contains("inside /proc"));
        }
    }
}
