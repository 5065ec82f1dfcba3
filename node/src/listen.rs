//! Unix sockets to serve on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

use crate::error::{Error, IoContext, Result};

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
