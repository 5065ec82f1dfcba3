//! One connection to another node, made again when it broke.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, RANGE};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::tls::{self, Tls};
use crate::error::{Error, Result};

/// How long a connection, or the head of an answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The connection.
pub struct Connection<'a> {
    tls: &'a Tls,
    peer: &'a str,
    live: Option<Live>,
}

struct Live {
    send: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<'a> Connection<'a> {
    /// To `peer`, `HOST:PORT`; nothing is sent yet.
    pub fn new(tls: &'a Tls, peer: &'a str) -> Self {
        Self { tls, peer, live: None }
    }

    /// Asks for a path, from the byte `start`. After a failure the next call connects again.
    pub async fn get(&mut self, path: &str, start: u64) -> Result<Response<Incoming>> {
        let result = tokio::time::timeout(PATIENCE, self.try_get(path, start)).await;
        let result =
            result.unwrap_or_else(|_| Err(self.failed(&format!("no answer in {} s", PATIENCE.as_secs()))));
        if result.is_err() {
            self.close();
        }
        result
    }

    /// Forgets a connection on which something went wrong.
    pub fn close(&mut self) {
        self.live = None;
    }

    async fn try_get(&mut self, path: &str, start: u64) -> Result<Response<Incoming>> {
        if let Some(live) = &mut self.live
            && live.send.ready().await.is_err()
        {
            self.close();
        }
        let live = match self.live.take() {
            Some(live) => live,
            None => self.connect().await?,
        };
        let live = self.live.insert(live);
        let mut request = Request::get(path).header(HOST, "cloister-node");
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let request = request.body(Empty::new()).map_err(|error| Error::Invalid(error.to_string()))?;
        let response = live.send.send_request(request).await;
        response.map_err(|error| self.failed(&error))
    }

    async fn connect(&self) -> Result<Live> {
        let config = self.tls.client()?;
        let stream = TcpStream::connect(self.peer).await.map_err(|error| self.failed(&error))?;
        let stream = TlsConnector::from(config).connect(tls::name(), stream).await;
        let stream = stream.map_err(|error| self.failed(&error))?;
        let (send, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(&error))?;
        // Its end is seen by who sends or reads.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Live { send, driver })
    }

    /// Something that another attempt may mend.
    pub fn failed(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Peer(format!("{}: {why}", self.peer))
    }
}
