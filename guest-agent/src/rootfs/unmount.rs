//! Taking mounts apart.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Context, Result};

/// How long the kernel may take to let go of a file system whose users are dead.
const RELEASE: Duration = Duration::from_secs(2);

/// Unmounts for real, so that a disk below can be unplugged. Mount namespaces of dead processes are taken apart a
/// moment after the last one was reaped.
///
/// # Errors
/// When something still holds it: it is detached then, and goes with its last user.
pub fn release(target: &Path) -> Result<()> {
    let end = Instant::now() + RELEASE;
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => {
                let _ = unmount(target, UnmountFlags::DETACH);
                return Err(e).context(|| format!("unmount {}", target.display()));
            }
        }
    }
}
