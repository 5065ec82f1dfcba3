//! Connections into the guest: the kernel's vhost-vsock where the host has it, otherwise our own device.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use cloister_vsock::{Device, DialError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::vmm::StreamMetrics;
use crate::{Error, Result};

/// Time between two attempts while the guest is starting.
const RETRY: Duration = Duration::from_millis(5);

/// A byte stream to a program in the guest. `shutdown` closes the sending direction only.
#[derive(Debug)]
pub struct VsockStream(Inner);

#[derive(Debug)]
enum Inner {
    /// One end of a socket pair whose other end our device serves.
    Device(UnixStream),
    Kernel(tokio_vsock::VsockStream),
}

impl VsockStream {
    /// The socket itself, non-blocking, for a program that pumps bytes on its own.
    ///
    /// # Errors
    /// The stream cannot be taken out of the runtime.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self.0 {
            Inner::Device(stream) => Ok(stream.into_std()?.into()),
            // SAFETY: `into_raw_fd` gives up ownership of the descriptor.
            Inner::Kernel(stream) => Ok(unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) }),
        }
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Device(s) => Pin::new(s).poll_read(cx, buf),
            Inner::Kernel(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Device(s) => Pin::new(s).poll_write(cx, buf),
            Inner::Kernel(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither kind of socket holds anything back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Device(s) => {
                // The guest may have closed first, which is not an error of ours.
                match ready!(Pin::new(s).poll_shutdown(cx)) {
                    Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                    other => Poll::Ready(other),
                }
            }
            Inner::Kernel(s) => Poll::Ready(s.shutdown(std::net::Shutdown::Write)),
        }
    }
}

/// What carries a VM's vsock connections.
#[derive(Debug)]
pub(crate) enum Transport {
    Device(Device),
    Kernel {
        cid: u32,
        /// Connections made.
        opened: AtomicU64,
    },
}

/// QEMU's half of a transport.
#[derive(Debug)]
pub(crate) enum Frontend {
    /// A connected vhost-user socket.
    VhostUser(OwnedFd),
    /// An opened `/dev/vhost-vsock` whose context id is set already.
    Vhost { fd: OwnedFd, cid: u32 },
}

impl Transport {
    /// Picks the kernel's transport when `/dev/vhost-vsock` opens, otherwise starts our device.
    pub fn open() -> Result<(Self, Frontend)> {
        match OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock") {
            Ok(file) => {
                let fd = OwnedFd::from(file);
                let cid = claim_cid(&fd)?;
                Ok((Self::Kernel { cid, opened: AtomicU64::new(0) }, Frontend::Vhost { fd, cid }))
            }
            Err(_) => {
                let (device, frontend) = Device::pair(cloister_vsock::Config::default())
                    .map_err(|e| Error::invalid("vsock", e.to_string()))?;
                Ok((Self::Device(device), Frontend::VhostUser(frontend)))
            }
        }
    }

    /// One attempt; a guest that is not listening yet refuses.
    pub async fn dial(&self, port: u32, limit: Duration) -> Result<VsockStream> {
        match self {
            Self::Device(device) => {
                let (sender, outcome) = oneshot::channel();
                let callback = Box::new(move |dialled| drop(sender.send(dialled)));
                device.dialer().dial_with(port, limit, callback);
                let dialled = outcome.await.unwrap_or(Err(DialError::Closed { port }));
                let stream = dialled.map_err(|e| Error::Dial { port, source: e.into() })?;
                stream
                    .set_nonblocking(true)
                    .and_then(|()| UnixStream::from_std(stream))
                    .map(|s| VsockStream(Inner::Device(s)))
                    .map_err(Error::os("watch a vsock stream"))
            }
            Self::Kernel { cid, opened } => {
                let connect = tokio_vsock::VsockStream::connect(tokio_vsock::VsockAddr::new(*cid, port));
                let connected = tokio::time::timeout(limit, connect)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                connected
                    .inspect(|_| {
                        opened.fetch_add(1, Ordering::Relaxed);
                    })
                    .map(|s| VsockStream(Inner::Kernel(s)))
                    .map_err(|source| Error::Dial { port, source })
            }
        }
    }

    /// Counts the connections.
    pub fn metrics(&self) -> StreamMetrics {
        match self {
            Self::Device(device) => {
                let read = device.metrics();
                StreamMetrics { open: Some(read.connections), opened: read.accepted + read.dialled }
            }
            Self::Kernel { opened, .. } => {
                StreamMetrics { open: None, opened: opened.load(Ordering::Relaxed) }
            }
        }
    }

    /// As [`dial`](Self::dial), but tries again while the guest refuses, until `limit` has passed.
    pub async fn dial_until_ready(&self, port: u32, limit: Duration) -> Result<VsockStream> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.dial(port, left).await {
                Err(Error::Dial { source, .. }) if not_ready(&source) && left > RETRY => {
                    tokio::time::sleep(RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Answers of a guest whose driver or agent is not up yet.
fn not_ready(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset) || error.raw_os_error() == Some(libc::ENODEV)
}

/// `VHOST_VSOCK_SET_GUEST_CID` of linux/vhost.h: `_IOW(0xAF, 0x60, __u64)`.
const SET_GUEST_CID: u64 = 0x4008_AF60;

/// Gives an opened `/dev/vhost-vsock` a context id no other VM has. The kernel is the register of ids: it
/// refuses one in use, and frees it when the descriptor is closed, however its holder ends.
fn claim_cid(fd: &OwnedFd) -> Result<u32> {
    for _ in 0..64 {
        let mut bytes = [0u8; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::errno("get random bytes"))?;
        // 3 is the first id of a guest; the highest are reserved.
        let cid = u64::from(u32::from_ne_bytes(bytes) & 0x7fff_ffff) | 0x100;
        // SAFETY: the request reads one u64 from the pointer, which is valid for the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), SET_GUEST_CID, &cid) } == 0 {
            return Ok(cid as u32);
        }
        let source = io::Error::last_os_error();
        if source.raw_os_error() != Some(libc::EADDRINUSE) {
            return Err(Error::Os { what: "set a vsock context id", source });
        }
    }
    Err(Error::invalid("vsock", "no free context id found in 64 attempts"))
}
