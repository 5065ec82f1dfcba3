//! Unix sockets to serve on: made here, or held by systemd, so that who connects while the daemon restarts waits.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

use crate::error::{Error, IoContext, Result};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// The listening socket that systemd holds for this process, if it does.
///
/// # Errors
/// When what was passed is not one listening unix socket.
pub fn inherited() -> Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    // Meant for another process, when it names one.
    if number("LISTEN_PID").is_none_or(|pid| pid != std::process::id()) {
        return Ok(None);
    }
    let wrong = |why: &str| Error::Invalid(format!("the socket that systemd passes: {why}"));
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(count) => return Err(wrong(&format!("there are {count}; cloister-node.socket has one"))),
    }
    // SAFETY: by the protocol descriptor 3 is open and nobody else's in this process.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    if !rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or_default() {
        return Err(wrong("it does not listen"));
    }
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| wrong(&error.to_string()))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    listener.map(Some).map_err(|error| wrong(&error.to_string()))
}

/// Listens on `path`, for the daemon's user only. A socket nobody listens on any more is replaced.
pub fn unix(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).at("make", dir)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Error::Precondition(format!(
                "{}: another daemon is serving here; stop it first",
                path.display()
            )));
        }
        std::fs::remove_file(path).at("remove", path)?;
    }
    // Made under a name nobody connects to, so that it is never open to others.
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).at("listen on", &new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).at("change the mode of", &new)?;
    std::fs::rename(&new, path).at("publish", path)?;
    Ok(listener)
}
