//! The `start` action: makes the shim's socket, leaves the process that serves it behind, answers its address.
//!
//! The socket is listening before the serving process starts, which inherits it as its standard input: containerd may
//! connect at once and nobody has to wait for anybody. The answer is the bare address, which every containerd reads
//! as a shim that speaks version 2 of the task service over ttrpc.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use containerd_shim::Flags;

use crate::options::{self, Kind};

/// The pod that an invocation is about, by the bundle it runs in.
pub fn pod_of(id: &str, bundle: &Path) -> (Kind, String) {
    // A sandbox of containerd's sandbox service has no specification in its bundle.
    match options::read(bundle) {
        Ok(spec) => options::kind(id, &options::annotations(&spec)),
        Err(_) => (Kind::Sandbox, id.to_owned()),
    }
}

/// Where a pod's shim listens.
pub fn socket(flags: &Flags, pod: &str) -> PathBuf {
    let address = containerd_shim::socket_address(&flags.address, &flags.namespace, pod);
    PathBuf::from(address.trim_start_matches("unix://"))
}

/// Runs the action.
pub fn start(flags: &Flags) -> Result<()> {
    if flags.id.is_empty() || flags.namespace.is_empty() {
        bail!("`start` needs -id and -namespace");
    }
    let bundle = std::env::current_dir().context("cannot find the bundle")?;
    let (kind, pod) = pod_of(&flags.id, &bundle);
    let socket = socket(flags, &pod);
    match (kind, listen(&socket)?) {
        (_, None) => {}
        (Kind::Member, Some(_)) => {
            let _ = fs::remove_file(&socket);
            bail!("the pod {pod} has no shim any more, so the container {} cannot join it", flags.id);
        }
        (_, Some(listener)) => leave(flags, &pod, &socket, listener)?,
    }
    let address = format!("unix://{}", socket.display());
    fs::write(bundle.join("address"), &address).context("cannot write the shim's address")?;
    crate::answer(address.as_bytes())
}

/// Listens on the socket; `None` when a living shim does already.
fn listen(socket: &Path) -> Result<Option<OwnedFd>> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let failed = || format!("cannot listen on {}", socket.display());
    match UnixListener::bind(socket) {
        Ok(listener) => Ok(Some(listener.into())),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            fs::remove_file(socket).with_context(failed)?;
            Ok(Some(UnixListener::bind(socket).with_context(failed)?.into()))
        }
        Err(error) => Err(error).with_context(failed),
    }
}

/// Starts this program again to serve the socket.
fn leave(flags: &Flags, pod: &str, socket: &Path, listener: OwnedFd) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("containerd-shim-cloister-v2")
        .args(["-namespace", &flags.namespace, "-id", pod, "-address", &flags.address])
        .arg("-socket")
        .arg(socket)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // One heap: threads come and go with what waits for files, and a heap for each keeps what execs leave in it.
        .env("MALLOC_ARENA_MAX", "1")
        .process_group(0);
    if flags.debug {
        command.arg("-debug");
    }
    command.spawn().context("cannot start the serving process")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_shims_socket_is_replaced_and_a_living_ones_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let living = listen(&socket).unwrap().unwrap();
        assert!(listen(&socket).unwrap().is_none());
        drop(living);
        assert!(listen(&socket).unwrap().is_some());
    }
}
