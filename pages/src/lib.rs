//! A small HTTP server for pages that programs read: metrics, health. It answers GET and nothing else, one request per
//! connection, a bounded number of them at a time, each with a deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// How long one request may take, from its first byte to the answer's last.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Requests answered at the same time; further ones wait.
const PARALLEL: usize = 4;

/// What is served.
pub trait Pages: Send + Sync + 'static {
    /// The page at `path` (without a query), or none.
    fn page(&self, path: &str) -> impl Future<Output = Option<Page>> + Send;
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Status code and its words, such as "200 OK".
    pub status: &'static str,
    /// Its text.
    pub body: String,
}

impl Page {
    /// What was asked for.
    pub fn ok(body: impl Into<String>) -> Self {
        Self { status: "200 OK", body: body.into() }
    }

    /// It could not be made.
    pub fn failed(why: impl std::fmt::Display) -> Self {
        Self { status: "500 Internal Server Error", body: format!("{why}\n") }
    }

    /// Not now.
    pub fn unavailable(why: impl std::fmt::Display) -> Self {
        Self { status: "503 Service Unavailable", body: format!("{why}\n") }
    }
}

/// Serves over TCP until dropped.
pub async fn serve_tcp(listener: TcpListener, pages: Arc<impl Pages>) {
    let places = Arc::new(Semaphore::new(PARALLEL));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, &pages, &places).await,
            Err(_) => pause().await,
        }
    }
}

/// Serves over a unix socket until dropped.
pub async fn serve_unix(listener: UnixListener, pages: Arc<impl Pages>) {
    let places = Arc::new(Semaphore::new(PARALLEL));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, &pages, &places).await,
            Err(_) => pause().await,
        }
    }
}

/// Out of descriptors, mostly: the next try would fail as fast.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn spawn<S>(stream: S, pages: &Arc<impl Pages>, places: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(place) = places.clone().acquire_owned().await else { return };
    let pages = pages.clone();
    tokio::spawn(async move {
        // A client that is slow or gone is no concern of ours.
        let _ = tokio::time::timeout(DEADLINE, answer(stream, &*pages)).await;
        drop(place);
    });
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, pages: &impl Pages) -> std::io::Result<()> {
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
    let page = match (words.next(), words.next().and_then(|path| path.split('?').next())) {
        (Some("GET"), Some(path)) => pages
            .page(path)
            .await
            .unwrap_or_else(|| Page { status: "404 Not Found", body: "no such page\n".to_owned() }),
        _ => Page { status: "405 Method Not Allowed", body: "only GET\n".to_owned() },
    };
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.status,
        page.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(page.body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hello;

    impl Pages for Hello {
        async fn page(&self, path: &str) -> Option<Page> {
            (path == "/hello").then(|| Page::ok("hello\n"))
        }
    }

    async fn ask(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let serve = tokio::spawn(async move { answer(server, &Hello).await });
        // The server may have closed before all was written.
        let _ = client.write_all(request.as_bytes()).await;
        let _ = client.shutdown().await;
        let mut text = String::new();
        let _ = client.read_to_string(&mut text).await;
        let _ = serve.await.unwrap();
        text
    }

    #[tokio::test]
    async fn pages_are_found_without_their_query() {
        assert!(ask("GET /hello?x=1 HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\nhello\n"));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
        assert!(ask("POST /hello HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    }

    #[tokio::test]
    async fn a_head_without_an_end_has_no_answer() {
        assert_eq!(ask(&"x".repeat(MAX_HEAD + 1)).await, "");
        assert_eq!(ask("GET /hello HTTP/1.1\r\n").await, "");
    }
}
