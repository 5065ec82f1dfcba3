//! A network namespace, and work done inside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstat, fstatfs, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::{Error, Result};

/// An opened network namespace; it exists at least as long as this.
#[derive(Debug, Clone)]
pub struct Netns(Arc<OwnedFd>);

impl Netns {
    /// Opens the namespace of a pod, as CNI names it (`/run/netns/…`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// There is no network namespace at the path, or it is the host's own.
    pub fn open(path: &Path) -> Result<Self> {
        let error = |source| Error::Open { path: path.to_owned(), source };
        let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|e| error(e.into()))?;
        if !is_netns(&fd).map_err(error)? {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "it is no network namespace")));
        }
        // The init process is a stranger to a process in a PID namespace of its own; ours is always there.
        for host in ["/proc/self/ns/net", "/proc/1/ns/net"] {
            if same(&fd, Path::new(host)) {
                return Err(Error::HostNetwork(path.to_owned()));
            }
        }
        Ok(Self(Arc::new(fd)))
    }

    /// Runs `job` on a thread of its own inside the namespace. Sockets and taps it opens stay in the namespace
    /// wherever they are used afterwards.
    ///
    /// # Errors
    /// The thread cannot start or enter the namespace; otherwise those of `job`.
    pub async fn run<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let fd = self.0.clone();
        let (reply, answer) = oneshot::channel();
        let work = move || {
            let entered = move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network));
            let outcome = entered.map_err(|e| Error::Thread(e.into())).and_then(|()| job());
            // Nobody waits any more: what the job opened is dropped here.
            drop(reply.send(outcome));
        };
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn(work);
        drop(thread.map_err(Error::Thread)?);
        answer.await.map_err(|_| Error::Thread(io::ErrorKind::BrokenPipe.into()))?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_netns(fd: &OwnedFd) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    if fstatfs(fd)?.f_type != libc::NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: the request takes no argument and returns the type of the namespace.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind == libc::CLONE_NEWNET) }
}

fn same(fd: &OwnedFd, path: &Path) -> bool {
    let (Ok(a), Ok(b)) = (fstat(fd), rustix::fs::stat(path)) else { return false };
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_and_other_files_are_refused() {
        let error = Netns::open(Path::new("/proc/self/ns/net")).unwrap_err().to_string();
        assert!(error.contains("is the host's") && error.contains("hostNetwork"), "{error}");
        for wrong in ["/proc/self/ns/mnt", "/etc/hostname", "/"] {
            let error = Netns::open(Path::new(wrong)).unwrap_err().to_string();
            assert!(error.ends_with("it is no network namespace"), "{error}");
        }
        let error = Netns::open(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.starts_with("cannot open network namespace /nonexistent: No such file"), "{error}");
    }
}
