//! Connections to servers in the guest: on its loopback, and on unix sockets of its containers.

use std::time::Duration;

use cloister_protocol::forward::{self, Socket};
use cloister_protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Agent;
use crate::dial::Connection;
use crate::error::Error;

/// How long guest and server together may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

impl Agent {
    /// Connects to a TCP server on 127.0.0.1 or ::1 of the guest. The connection is the server's from then on, with
    /// half-close both ways.
    ///
    /// # Errors
    /// [`Error::Refused`] when nothing listens on the port, [`Error::Dial`] when the guest does not answer.
    pub async fn forward(&self, port: u16) -> Result<Connection, Error> {
        if port == forward::UNIX {
            return Err(Error::Refused(port.to_string()));
        }
        self.reach(&port.to_be_bytes(), || format!("port {port} of 127.0.0.1 or ::1")).await
    }

    /// Connects to a unix socket at an absolute path of a container's root filesystem, as [`Agent::forward`] does.
    ///
    /// # Errors
    /// As [`Agent::forward`]; [`Error::Refused`] also when there is no such container or path.
    pub async fn forward_unix(&self, container: &str, path: &str) -> Result<Connection, Error> {
        let place = || format!("the unix socket {path} of container {container}");
        match Socket::new(container, path) {
            Some(socket) => self.reach(&socket.encode(), place).await,
            None => Err(Error::Refused(place())),
        }
    }

    async fn reach(&self, request: &[u8], place: impl Fn() -> String) -> Result<Connection, Error> {
        let exchange = async {
            let mut connection = self.dialer.connect(ports::FORWARD).await?;
            connection.write_all(request).await?;
            let answer = connection.read_u8().await?;
            Ok::<_, std::io::Error>((connection, answer))
        };
        let failed = |cause: String| Error::Dial { port: ports::FORWARD, after: CONNECT, cause };
        match tokio::time::timeout(CONNECT, exchange).await {
            Ok(Ok((connection, forward::CONNECTED))) => Ok(connection),
            Ok(Ok((_, forward::REFUSED))) => Err(Error::Refused(place())),
            Ok(Ok(_)) => Err(Error::Reply { call: "reach a server in the guest", why: "unknown answer" }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the connection was not answered".to_owned())),
        }
    }
}
