//! Connections from the host to servers on the guest's loopback and to unix sockets of containers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloister_protocol::forward::{self, Socket};
use cloister_protocol::limits;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::{VsockListener, VsockStream};

use crate::containers::Containers;
use crate::inroot::Root;

/// How long a server may take to accept; it is on the same machine.
const CONNECT: Duration = Duration::from_secs(5);

/// Pause after a connection that could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// Bytes held in each direction of a connection.
const BUFFER: usize = 32 << 10;

/// Accepts connections, for ever. Each lasts as long as both its ends.
pub async fn run(listener: VsockListener, containers: Arc<Containers>) {
    let places = Arc::new(Semaphore::new(limits::FORWARDS));
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a forwarded connection");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("more than {} forwarded connections", limits::FORWARDS);
            continue; // closed at once
        };
        let containers = Arc::clone(&containers);
        tokio::spawn(async move {
            if let Err(error) = relay(connection, &containers).await {
                tracing::debug!(%error, "forwarded connection");
            }
            drop(place);
        });
    }
}

async fn relay(mut host: VsockStream, containers: &Containers) -> io::Result<()> {
    match timeout(limits::HANDSHAKE, host.read_u16()).await?? {
        forward::UNIX => {
            let socket = timeout(limits::HANDSHAKE, Socket::read(&mut host)).await??;
            let root = containers.get(&socket.container).and_then(|container| container.root());
            let server = match root {
                Ok(root) => connect_unix(root, socket.path).await,
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            join(host, server.inspect_err(|error| tracing::debug!(%error, "unix socket")).ok()).await
        }
        port => join(host, connect(port).await).await,
    }
}

/// Answers the host and moves bytes until both sides have ended.
async fn join(mut host: VsockStream, server: Option<impl AsyncRead + AsyncWrite + Unpin>) -> io::Result<()> {
    let Some(mut server) = server else {
        return timeout(limits::HANDSHAKE, host.write_u8(forward::REFUSED)).await?;
    };
    timeout(limits::HANDSHAKE, host.write_u8(forward::CONNECTED)).await??;
    copy_bidirectional_with_sizes(&mut host, &mut server, BUFFER, BUFFER).await.map(drop)
}

/// Connects to a unix socket inside a root. The path is walked on a thread of its own: a container may have mounted
/// something slow there.
async fn connect_unix(root: Root, path: String) -> io::Result<UnixStream> {
    let open = tokio::task::spawn_blocking(move || open_socket(&root, Path::new(&path)));
    let socket = timeout(CONNECT, open).await???;
    // The name of an open file: nothing can take the socket's place any more, and no path is too long.
    timeout(CONNECT, UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))).await?
}

fn open_socket(root: &Root, path: &Path) -> io::Result<OwnedFd> {
    let socket = root.openat2(path, OFlags::PATH, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) == FileType::Socket {
        return Ok(socket);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a socket", path.display())))
}

/// Connects to a server of the loopback, IPv4 first.
async fn connect(port: u16) -> Option<TcpStream> {
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        if let Ok(Ok(server)) = timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
            let _ = server.set_nodelay(true);
            return Some(server);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_is_found_inside_its_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tokio::net::UnixListener::bind(folder.path().join("outside")).unwrap();
        let inside = folder.path().join("root");
        std::fs::create_dir_all(inside.join("run")).unwrap();
        let listener = tokio::net::UnixListener::bind(inside.join("run/server")).unwrap();
        std::os::unix::fs::symlink("/run/server", inside.join("link")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("outside"), inside.join("escape")).unwrap();
        std::fs::write(inside.join("file"), "").unwrap();
        let reach = |path: &str| connect_unix(Root::open(&inside).unwrap(), path.to_owned());
        for path in ["/run/server", "/link", "/../run/./server"] {
            assert!(reach(path).await.is_ok(), "{path}");
        }
        for path in ["/escape", "/../outside", "/file", "/run", "/none"] {
            assert!(reach(path).await.is_err(), "{path}");
        }
        drop((listener, outside));
        assert!(reach("/run/server").await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn both_families_are_tried() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!(connect(port).await.is_some(), "{address}");
            drop(listener);
            assert!(connect(port).await.is_none(), "{address}");
        }
    }
}
