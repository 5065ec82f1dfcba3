//! `GET /metrics`, over TCP or a unix socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::Page;
use crate::error::{Error, Result};
use crate::listen;

/// How long one request may take, from its first byte to the answer's last.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Requests answered at the same time; further ones wait.
const PARALLEL: usize = 4;

/// Where the page is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `IP:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err("the path after unix: must be absolute".to_owned()),
            None => text.parse().map(Self::Tcp).map_err(|_| "not IP:PORT and not unix:PATH".to_owned()),
        }
    }
}

/// Serves until dropped.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: &Address, page: Arc<Page>) -> Result<()> {
    let places = Arc::new(Semaphore::new(PARALLEL));
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| Error::Invalid(format!("cannot listen on {address}: {error}")))?;
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    spawn(stream, &page, &places).await;
                }
            }
        }
        Address::Unix(path) => {
            let listener: UnixListener = listen::unix(path)?;
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    spawn(stream, &page, &places).await;
                }
            }
        }
    }
}

async fn spawn<S>(stream: S, page: &Arc<Page>, places: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(place) = places.clone().acquire_owned().await else { return };
    let page = page.clone();
    tokio::spawn(async move {
        // A client that is slow or gone is no concern of ours.
        let _ = tokio::time::timeout(DEADLINE, answer(stream, &page)).await;
        drop(place);
    });
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, page: &Page) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut some = [0; 1024];
        let n = stream.read(&mut some).await?;
        head.extend_from_slice(&some[..n]);
        if n == 0 || head.len() > MAX_HEAD {
            return Ok(());
        }
    }
    let line =
        String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (status, body) = match (words.next(), words.next().and_then(|path| path.split('?').next())) {
        (Some("GET"), Some("/metrics")) => match page.render().await {
            Ok(body) => ("200 OK", body),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        (Some("GET"), _) => ("404 Not Found", "the page is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_tcp_or_an_absolute_path() {
        assert_eq!("127.0.0.1:9".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 9).into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        assert!("unix:x".parse::<Address>().is_err());
        assert!("localhost".parse::<Address>().is_err());
    }
}
