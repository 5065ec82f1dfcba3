//! Connections to servers on the guest's loopback.

use std::time::Duration;

use cloister_protocol::{forward, ports};
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
        let exchange = async {
            let mut connection = self.dialer.connect(ports::FORWARD).await?;
            connection.write_all(&port.to_be_bytes()).await?;
            let answer = connection.read_u8().await?;
            Ok::<_, std::io::Error>((connection, answer))
        };
        let failed = |cause: String| Error::Dial { port: ports::FORWARD, after: CONNECT, cause };
        match tokio::time::timeout(CONNECT, exchange).await {
            Ok(Ok((connection, forward::CONNECTED))) => Ok(connection),
            Ok(Ok((_, forward::REFUSED))) => Err(Error::Refused(port)),
            Ok(Ok(_)) => Err(Error::Reply { call: "reach a server in the guest", why: "unknown answer" }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the connection was not answered".to_owned())),
        }
    }
}
