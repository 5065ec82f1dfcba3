//! Reaching a guest's vsock ports from any process of the host that may use the machine's door.
//!
//! The process that owns a machine listens on a unix socket in the machine's private folder. A client connects, sends
//! a port (u32, little endian) and gets one byte: [`OK`] with the connection's descriptor attached, or [`REFUSED`]
//! and the reason. The bytes of the connection then take no detour through the owner's door, and whether the kernel
//! or our own device carries vsock makes no difference. The folder's mode decides who may connect.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, printable};

/// One connection to a port of a guest.
pub type Connection = UnixStream;

const OK: u8 = 1;
const REFUSED: u8 = 0;
/// Longest reason that is passed on, in bytes.
const REASON: usize = 512;
/// How long a client may take to name its port.
const GREETING: Duration = Duration::from_secs(5);

/// How to reach a guest; can be written down and used by another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialer(PathBuf);

impl Dialer {
    /// The door at a path.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Connects to a port of the guest. The caller bounds the time.
    ///
    /// # Errors
    /// When the machine is gone or nothing in the guest listens.
    pub async fn connect(&self, port: u32) -> io::Result<Connection> {
        let mut door = UnixStream::connect(&self.0).await?;
        door.write_all(&port.to_le_bytes()).await?;
        let (status, fd) = door.async_io(Interest::READABLE, || receive(door.as_fd())).await?;
        match (status, fd) {
            (OK, Some(fd)) => {
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
            (REFUSED, _) => {
                let mut reason = String::new();
                door.take(REASON as u64).read_to_string(&mut reason).await?;
                Err(io::Error::new(io::ErrorKind::ConnectionRefused, printable(&reason)))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the machine's door gave no valid answer")),
        }
    }
}

/// One status byte and at most one descriptor.
fn receive(door: impl AsFd) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut status = [0];
    let got = recvmsg(door, &mut [IoSliceMut::new(&mut status)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the machine's door closed"));
    }
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.into_iter().next();
        }
    }
    let [status] = status;
    Ok((status, fd))
}

/// Serves the door at `path` until dropped; `dial` connects to a port of the guest or says why it can't.
pub(crate) struct Door {
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

impl Door {
    /// Opens the door.
    pub(crate) fn open<F>(path: &Path, dial: impl Fn(u32) -> F + Clone + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = Result<OwnedFd, String>> + Send + 'static,
    {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let task = tokio::spawn(async move {
            let mut clients = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((client, _)) => {
                            let dial = dial.clone();
                            clients.spawn(async move {
                                // A client that hangs up has its own reasons.
                                let _ = serve(client, dial).await;
                            });
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot let a connection to the guest in");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                    Some(_) = clients.join_next() => {}
                }
            }
        });
        Ok(Self { task, path: path.to_owned() })
    }

    /// How to go through it.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer::new(self.path.clone())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already when the folder is.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve<F>(mut client: UnixStream, dial: impl Fn(u32) -> F) -> io::Result<()>
where
    F: Future<Output = Result<OwnedFd, String>>,
{
    let port = tokio::time::timeout(GREETING, client.read_u32_le()).await??;
    match dial(port).await {
        Ok(fd) => {
            client
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let fds = [fd.as_fd()];
                    control.push(SendAncillaryMessage::ScmRights(&fds));
                    Ok(sendmsg(&client, &[IoSlice::new(&[OK])], &mut control, SendFlags::NOSIGNAL)?)
                })
                .await?;
        }
        Err(reason) => {
            let reason: String = reason.chars().take(REASON / 4).collect();
            client.write_all(&[REFUSED]).await?;
            client.write_all(reason.as_bytes()).await?;
        }
    }
    client.shutdown().await
}

/// The same connection for blocking calls of a thread.
pub(crate) fn blocking(connection: Connection) -> Result<std::os::unix::net::UnixStream, Error> {
    let plain = connection.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    plain.map_err(|cause| Error::System { what: "use a stream of the guest", cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-door-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[tokio::test]
    async fn a_connection_comes_through_the_door() {
        let door = Door::open(&path("ok"), |port| async move {
            let (ours, mut theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
            theirs.write_all(&port.to_be_bytes()).await.map_err(|e| e.to_string())?;
            Ok(ours.into_std().map_err(|e| e.to_string())?.into())
        })
        .unwrap();
        let mut connection = door.dialer().connect(1024).await.unwrap();
        assert_eq!(connection.read_u32().await.unwrap(), 1024);
        let path = door.path.clone();
        drop(door);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let door = Door::open(&path("no"), |_| async { Err("nothing listens".to_owned()) }).unwrap();
        let error = door.dialer().connect(7).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error.to_string(), "nothing listens");
    }
}
