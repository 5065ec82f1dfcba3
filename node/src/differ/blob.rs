//! A blob that arrives over gRPC, read by a thread that blocks.

use std::io::{self, Read};
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Streaming;

use crate::api::content::v1::ReadContentResponse;

/// How long containerd may take for one piece.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pieces in flight; containerd sends 1 MiB at most in one.
const DEPTH: usize = 4;

/// What travels: bytes, the end, or why there are no more. A closed channel means that the caller went away.
type Message = Result<Option<Vec<u8>>, String>;

/// The reading side.
pub struct Blob {
    from: mpsc::Receiver<Message>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

/// Two halves: one to be read on a thread, one to be run with [`feed`].
pub fn pipe() -> (mpsc::Sender<Message>, Blob) {
    let (to, from) = mpsc::channel(DEPTH);
    (to, Blob { from, piece: Vec::new(), at: 0, ended: false })
}

/// Moves a blob from containerd to the reading side, until it ends or nobody reads any more.
pub async fn feed(mut stream: Streaming<ReadContentResponse>, to: mpsc::Sender<Message>) {
    loop {
        let message = match tokio::time::timeout(DEADLINE, stream.message()).await {
            Ok(Ok(Some(piece))) => Ok(Some(piece.data)),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(status)) => Err(format!("containerd: {}", status.message())),
            Err(_) => Err(format!("containerd sent nothing for {} s", DEADLINE.as_secs())),
        };
        let more = matches!(message, Ok(Some(_)));
        if to.send(message).await.is_err() || !more {
            return;
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            match self.from.blocking_recv() {
                Some(Ok(Some(piece))) => (self.piece, self.at) = (piece, 0),
                Some(Ok(None)) => self.ended = true,
                Some(Err(why)) => return Err(io::Error::other(why)),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "containerd gave up on the layer",
                    ));
                }
            }
        }
        let n = buffer.len().min(self.piece.len() - self.at);
        buffer[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_as_one_and_an_early_end_is_an_error() {
        let (to, mut blob) = pipe();
        to.blocking_send(Ok(Some(b"ab".to_vec()))).unwrap();
        to.blocking_send(Ok(Some(Vec::new()))).unwrap();
        to.blocking_send(Ok(Some(b"c".to_vec()))).unwrap();
        to.blocking_send(Ok(None)).unwrap();
        let mut all = String::new();
        blob.read_to_string(&mut all).unwrap();
        assert_eq!(all, "abc");
        assert_eq!(blob.read(&mut [0]).unwrap(), 0);

        let (to, mut blob) = pipe();
        to.blocking_send(Ok(Some(b"ab".to_vec()))).unwrap();
        drop(to);
        let error = blob.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
