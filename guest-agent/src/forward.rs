//! Connections from the host to servers on the guest's loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cloister_protocol::{forward, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::{VsockListener, VsockStream};

/// How long a server may take to accept; it is on the same machine.
const CONNECT: Duration = Duration::from_secs(5);

/// Pause after a connection that could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// Bytes held in each direction of a connection.
const BUFFER: usize = 32 << 10;

/// Accepts connections, for ever. Each lasts as long as both its ends.
pub async fn run(listener: VsockListener) {
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
        tokio::spawn(async move {
            if let Err(error) = relay(connection).await {
                tracing::debug!(%error, "forwarded connection");
            }
            drop(place);
        });
    }
}

async fn relay(mut host: VsockStream) -> io::Result<()> {
    let port = timeout(limits::HANDSHAKE, host.read_u16()).await??;
    let Some(mut server) = connect(port).await else {
        return timeout(limits::HANDSHAKE, host.write_u8(forward::REFUSED)).await?;
    };
    timeout(limits::HANDSHAKE, host.write_u8(forward::CONNECTED)).await??;
    copy_bidirectional_with_sizes(&mut host, &mut server, BUFFER, BUFFER).await.map(drop)
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
