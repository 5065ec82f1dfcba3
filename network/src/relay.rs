//! Bytes between two streams, both ways, each way ending on its own.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes copied at once, in each direction.
const CHUNK: usize = 16 << 10;

/// Copies until both sides have ended. After one has, the other may be silent for `linger`: whoever half-closes waits
/// for an answer, and one that has gone for good cannot be told from it.
///
/// # Errors
/// Either stream fails, or `linger` has passed.
pub(crate) async fn relay<A, B>(a: A, b: B, linger: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    let moved = AtomicU64::new(0);
    let there = pump(a_read, b_write, &moved);
    let back = pump(b_read, a_write, &moved);
    tokio::pin!(there, back);
    let there_ended = tokio::select! {
        ended = &mut there => { ended?; true }
        ended = &mut back => { ended?; false }
    };
    loop {
        let before = moved.load(Ordering::Relaxed);
        let rest = async { if there_ended { (&mut back).await } else { (&mut there).await } };
        match tokio::time::timeout(linger, rest).await {
            Ok(ended) => return ended,
            Err(_) if moved.load(Ordering::Relaxed) == before => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

async fn pump<R, W>(mut from: R, mut to: W, moved: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        moved.fetch_add(length as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_after_the_question_has_ended() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (theirs, mut server) = tokio::io::duplex(64);
        let relaying = tokio::spawn(relay(ours, theirs, Duration::from_secs(5)));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        relaying.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_never_ends_is_given_up() {
        let (client, ours) = tokio::io::duplex(64);
        let (theirs, mut server) = tokio::io::duplex(64);
        let relaying = tokio::spawn(relay(ours, theirs, Duration::from_secs(5)));
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        let error = relaying.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
