//! The one connection to buildkitd, watched: whoever uses it learns when and why it ended.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// With a session open buildkitd checks our health every five seconds: this long without a byte and it is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// What is known about the connection.
#[derive(Debug, Clone)]
pub(super) struct Link(Arc<State>);

#[derive(Debug)]
struct State {
    lost: CancellationToken,
    reason: OnceLock<String>,
    born: Instant,
    /// Milliseconds from `born` to the last byte received.
    heard: AtomicU64,
}

impl Link {
    pub(super) fn new() -> Self {
        Self(Arc::new(State {
            lost: CancellationToken::new(),
            reason: OnceLock::new(),
            born: Instant::now(),
            heard: AtomicU64::new(0),
        }))
    }

    /// Waits for the end of the connection and gives the reason.
    pub(super) async fn lost(&self) -> String {
        self.0.lost.cancelled().await;
        self.reason()
    }

    /// Waits until nothing has come for [`SILENCE`], counted from now at the earliest: then the connection counts as lost.
    pub(super) async fn silent(&self) -> String {
        let mut since = self.0.born.elapsed();
        loop {
            let heard = Duration::from_millis(self.0.heard.load(Ordering::Relaxed));
            since = since.max(heard);
            let quiet = self.0.born.elapsed().saturating_sub(since);
            match SILENCE.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => break,
            }
        }
        self.end(format!("nothing came for {} s", SILENCE.as_secs()));
        self.reason()
    }

    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.is_cancelled()
    }

    pub(super) fn reason(&self) -> String {
        self.0.reason.get().cloned().unwrap_or_else(|| "unknown reason".to_owned())
    }

    fn end(&self, reason: String) {
        // The first reason is the cause of the others.
        let _ = self.0.reason.set(reason);
        self.0.lost.cancel();
    }

    fn hear(&self) {
        let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.heard.store(now, Ordering::Relaxed);
    }
}

/// A stream that tells its [`Link`] what happens to it.
pub(super) struct Watched<S> {
    inner: S,
    link: Link,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, link: Link) -> Self {
        Self { inner, link }
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.link.end("closed on our side".to_owned());
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &poll {
            Poll::Ready(Ok(())) if buf.filled().len() > before => self.link.hear(),
            Poll::Ready(Ok(())) if buf.remaining() > 0 => {
                self.link.end("closed by buildkitd's side".to_owned())
            }
            Poll::Ready(Err(error)) => self.link.end(format!("reading: {error}")),
            _ => {}
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Err(error)) = &poll {
            self.link.end(format!("writing: {error}"));
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
