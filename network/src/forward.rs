//! Connections to the loopback of a pod's namespace, carried to the loopback of its guest.
//!
//! This is what `kubectl port-forward` needs: containerd enters the namespace and connects to `localhost:PORT`, where
//! nothing listens, since the servers are in the VM.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use cloister_protocol::forward::CONNECTED;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::nft::Rules;
use crate::relay::relay;
use crate::{Error, Netns, Result};

/// Connections carried at once; further ones are reset.
pub const MAX_CONNECTIONS: usize = 256;
/// How long the guest may take to accept or refuse a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a half-closed connection may be silent.
const LINGER: Duration = Duration::from_secs(600);
/// Pause after a connection could not be accepted for want of descriptors or memory.
const RETRY: Duration = Duration::from_millis(100);

/// Forwards until it is dropped: then the rules go and all connections are cut.
#[derive(Debug)]
pub struct Forwarder {
    _rules: Rules,
    _task: JoinSet<()>,
}

impl Forwarder {
    /// Starts to forward TCP connections made in `netns` to 127.0.0.0/8 and ::1. `dial` connects to the agent's port
    /// [`cloister_protocol::ports::FORWARD`].
    ///
    /// # Errors
    /// The loopback interface is down, or the kernel refuses the rules.
    pub async fn start<D, F, S, E>(netns: &Netns, dial: D) -> Result<Self>
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, E>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        E: Display + Send + 'static,
    {
        let (rules, v4, v6) = netns.run(listen).await?;
        let tokio = |listener| TcpListener::from_std(listener).map_err(Error::kernel("watch", "a listener"));
        let dial = Arc::new(dial);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut task = JoinSet::new();
        task.spawn(accept(tokio(v4)?, dial.clone(), places.clone()));
        if let Some(v6) = v6 {
            task.spawn(accept(tokio(v6)?, dial, places));
        }
        Ok(Self { _rules: rules, _task: task })
    }
}

/// Runs inside the namespace. Without ::1 there is nothing to forward from it.
fn listen() -> Result<(Rules, StdListener, Option<StdListener>)> {
    let bind = |address: SocketAddr| -> io::Result<(StdListener, u16)> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    let (v4, v4_port) =
        bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(Error::kernel("listen on", "127.0.0.1"))?;
    let v6: Option<(StdListener, u16)> = match bind((Ipv6Addr::LOCALHOST, 0).into()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => None,
        other => Some(other.map_err(Error::kernel("listen on", "::1"))?),
    };
    let rules = Rules::install(v4_port, v6.as_ref().map(|(_, port)| *port)).map_err(Error::kernel(
        "add nftables rules for",
        "port-forward (Linux 5.12 or newer with NAT is needed)",
    ))?;
    Ok((rules, v4, v6.map(|(listener, _)| listener)))
}

async fn accept<D, F, S, E>(listener: TcpListener, dial: Arc<D>, places: Arc<Semaphore>)
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Display + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to forward");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many forwarded connections: one is reset");
            reset(client);
            continue;
        };
        let dial = dial.clone();
        connections.spawn(async move {
            let _place = place;
            carry(client, &*dial).await;
        });
    }
}

/// Carries one connection from its beginning to its end.
async fn carry<D, F, S, E>(mut client: TcpStream, dial: &D)
where
    D: Fn() -> F,
    F: Future<Output = Result<S, E>>,
    S: AsyncRead + AsyncWrite + Unpin,
    E: Display + Send + 'static,
{
    let outcome = async {
        let port = original_port(&client)?;
        let guest = tokio::time::timeout(ANSWER_LIMIT, connect(dial, port))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        relay(&mut client, guest, LINGER).await
    };
    if let Err(error) = outcome.await {
        tracing::debug!(%error, "a forwarded connection is reset");
        reset(client);
    }
}

/// The guest's end of a connection to `port`.
async fn connect<D, F, S, E>(dial: &D, port: u16) -> io::Result<S>
where
    D: Fn() -> F,
    F: Future<Output = Result<S, E>>,
    S: AsyncRead + AsyncWrite + Unpin,
    E: Display + Send + 'static,
{
    let mut guest = dial().await.map_err(|e| io::Error::other(e.to_string()))?;
    guest.write_all(&port.to_be_bytes()).await?;
    match guest.read_u8().await? {
        CONNECTED => Ok(guest),
        _ => Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nothing listens on port {port} of the guest"),
        )),
    }
}

/// The port the client connected to, before the rules changed it.
fn original_port(client: &TcpStream) -> io::Result<u16> {
    Ok(if client.local_addr()?.is_ipv4() {
        sockopt::ip_original_dst(client)?.port()
    } else {
        sockopt::ipv6_original_dst(client)?.port()
    })
}

/// Closes with RST, which a client reads as a refusal.
fn reset(client: TcpStream) {
    // Without it the client sees an orderly end.
    let _ = sockopt::set_socket_linger(&client, Some(Duration::ZERO));
    drop(client);
}
