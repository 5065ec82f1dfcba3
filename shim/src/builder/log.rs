//! What the build driver writes to the container's log.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::failure::{Failure, Result};

/// Messages that wait for the reader.
const WAITING: usize = 4;
/// Bytes of the writing thread's stack.
const STACK: usize = 64 << 10;

/// The container's log. Its end is written once this is dropped, however slowly that is read.
pub struct Log {
    sender: mpsc::Sender<Vec<u8>>,
    /// How long a message waits for room before the log counts as unread.
    patience: Duration,
    unread: AtomicBool,
}

impl Log {
    /// Writes to `sink`, which may block, from a thread of its own. Without a sink nobody wants the log.
    ///
    /// # Errors
    /// When there can't be another thread.
    pub fn start(sink: Option<Box<dyn Write + Send>>, patience: Duration) -> Result<Self> {
        let (sender, mut waiting) = mpsc::channel::<Vec<u8>>(WAITING);
        if let Some(mut sink) = sink {
            let write = move || {
                while let Some(bytes) = waiting.blocking_recv() {
                    if sink.write_all(&bytes).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK);
            thread.spawn(write).map_err(Failure::other)?;
        }
        Ok(Self { sender, patience, unread: AtomicBool::new(false) })
    }

    /// Adds to the log. Waits for its reader; once that was away for `patience`, what does not fit is lost instead, so that
    /// nothing else waits for it.
    pub async fn write(&self, bytes: Vec<u8>) {
        let patience = if self.unread.load(Ordering::Relaxed) { Duration::ZERO } else { self.patience };
        let sent = tokio::time::timeout(patience, self.sender.send(bytes)).await.is_ok();
        if self.unread.swap(!sent, Ordering::Relaxed) == sent && !sent {
            tracing::warn!("nobody reads the builder's log: parts of it are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_is_away_does_not_block_for_ever() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let log = Log::start(Some(Box::new(ours)), Duration::from_millis(50)).unwrap();
        for _ in 0..200 {
            log.write(vec![b'x'; 64 << 10]).await;
        }
        assert!(log.unread.load(Ordering::Relaxed));
        drop(log);
        let mut text = Vec::new();
        theirs.read_to_end(&mut text).unwrap();
        assert!(text.len() >= WAITING * (64 << 10), "{}", text.len());
    }

    #[tokio::test]
    async fn the_log_is_complete_when_it_is_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let log = Log::start(Some(Box::new(ours)), Duration::from_secs(60)).unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            theirs.read_to_end(&mut text).unwrap();
            text.len()
        });
        for _ in 0..200 {
            log.write(vec![b'x'; 64 << 10]).await;
        }
        drop(log);
        assert_eq!(reader.join().unwrap(), 200 * (64 << 10));
    }
}
