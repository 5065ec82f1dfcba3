//! Where an output goes, and what came of it.

use std::path::Path;

use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

/// What a build may send as a tree.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders and links together.
    pub entries: u32,
}

/// An output that can't be received.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutputError {
    /// The build ended without sending it.
    #[error("the build sent no output")]
    Missing,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes: of the stream, or of all files of a tree.
    pub bytes: u64,
    /// `sha256:…` of a stream; a tree has none.
    pub digest: Option<String>,
}

/// Where one output of a build goes.
pub struct Output {
    _done: oneshot::Sender<Result<Received, OutputError>>,
}

/// Tells when an output is there.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Received, OutputError>>);

impl Output {
    /// A stream of at most `max_bytes` into `writer`, which is flushed and shut down at the end.
    pub fn stream(_writer: impl AsyncWrite + Send + Unpin + 'static, _max_bytes: u64) -> (Self, Receipt) {
        let (done, receipt) = oneshot::channel();
        (Self { _done: done }, Receipt(receipt))
    }

    /// A stream of at most `max_bytes` into the file `path`, which appears when it is whole.
    pub fn file(_path: impl AsRef<Path>, _max_bytes: u64) -> Result<(Self, Receipt), OutputError> {
        let (done, receipt) = oneshot::channel();
        Ok((Self { _done: done }, Receipt(receipt)))
    }

    /// A tree into the folder `path`, which must not exist or be empty, and appears when the tree is whole.
    pub fn folder(_path: impl AsRef<Path>, _limits: Limits) -> Result<(Self, Receipt), OutputError> {
        let (done, receipt) = oneshot::channel();
        Ok((Self { _done: done }, Receipt(receipt)))
    }
}

impl Receipt {
    /// Waits until the output is there, or can't come any more.
    pub async fn wait(self) -> Result<Received, OutputError> {
        self.0.await.unwrap_or(Err(OutputError::Missing))
    }
}
