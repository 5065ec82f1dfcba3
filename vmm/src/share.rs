//! A folder of the host inside the guest: one `virtiofsd` per share.
//!
//! The daemon always sandboxes itself (own mount, pid and network namespace, the share as its only root) and
//! filters its system calls: whatever links the guest makes, they resolve inside the share. As an ordinary user
//! it does so in a user namespace, and the guest then sees that user's files as root's.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::process::{Launch, Process};
use crate::{Error, Result};

/// Longest tag: `struct virtio_fs_config` has 36 bytes for it.
const MAX_TAG: usize = 36;
/// The daemon keeps a descriptor for every inode the guest knows.
const OPEN_FILES: u64 = 65_536;

/// A folder to share.
#[derive(Debug, Clone)]
pub struct Share {
    /// What the guest mounts it by: at most 36 letters, digits, `-`, `_`, `.`.
    pub tag: String,
    /// A folder of the host.
    pub path: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
}

/// Starts the daemon; returns it with a connected vhost-user socket for QEMU.
pub(crate) async fn start(program: &Path, run_dir: &Path, share: &Share) -> Result<(Process, OwnedFd)> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if share.tag.is_empty() || share.tag.len() > MAX_TAG || !share.tag.chars().all(good) {
        return Err(Error::invalid(
            format!("share tag {:?}", share.tag),
            "must be 1 to 36 letters, digits, '-', '_' or '.'",
        ));
    }
    // Opened to prove that it is a folder; named by where it really is, so that no link is followed later.
    let file_error = |source| Error::File { what: "shared folder", path: share.path.clone(), source };
    let folder = open(&share.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| file_error(e.into()))?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).map_err(file_error)?;

    let (listener, connected) = socket(run_dir)?;
    let args = arguments(&real, listener.as_raw_fd(), share.read_only, rustix::process::geteuid().is_root());
    let launch = Launch {
        what: "virtiofsd",
        program: program.to_owned(),
        args,
        inherit: vec![listener],
        user: None,
        // It unshares one of its own.
        netns: None,
        open_files: OPEN_FILES,
    };
    Ok((launch.start().await?, connected))
}

fn arguments(folder: &Path, listener: i32, read_only: bool, root: bool) -> Vec<OsString> {
    let mut shared = OsString::from("--shared-dir=");
    shared.push(folder);
    let mut args: Vec<OsString> = vec![
        format!("--fd={listener}").into(),
        shared,
        "--sandbox=namespace".into(),
        "--seccomp=kill".into(),
        "--inode-file-handles=never".into(),
        "--announce-submounts".into(),
        "--cache=auto".into(),
        "--rlimit-nofile=0".into(),
        "--log-level=error".into(),
    ];
    if root {
        // A guest has no business making device nodes in a folder of the host.
        args.push("--modcaps=-mknod".into());
    }
    if read_only {
        args.push("--readonly".into());
    }
    args
}

/// A listening socket with one connection waiting in it. Its name is gone before anyone else can connect: the
/// run folder is ours alone, and reached through a descriptor since socket paths are limited to 107 bytes.
fn socket(run_dir: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let folder = open(run_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::File { what: "run folder", path: run_dir.to_owned(), source: e.into() })?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/share.sock", folder.as_raw_fd()));
    // Left over when an owner was killed at just this point.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::os("listen for virtiofsd"))?;
    let connected = UnixStream::connect(&path).map_err(Error::os("connect to virtiofsd's socket"));
    std::fs::remove_file(&path).map_err(Error::os("remove virtiofsd's socket"))?;
    Ok((listener.into(), connected?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_always_sandboxed() {
        for (read_only, root) in [(false, false), (false, true), (true, false), (true, true)] {
            let args = arguments(Path::new("/x"), 5, read_only, root);
            let has = |a: &str| args.iter().any(|x| x == a);
            assert!(
                has("--sandbox=namespace")
                    && has("--seccomp=kill")
                    && has("--fd=5")
                    && has("--shared-dir=/x")
            );
            assert_eq!(has("--readonly"), read_only);
            assert!(!args.iter().any(|a| a.to_string_lossy().contains("none")));
        }
    }

    #[test]
    fn the_socket_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let (_listener, _connected) = socket(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
