//! Where an output goes, and what came of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use super::staging::Staging;
use super::{OutputError, stale};

/// What a build may send as a tree.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders and links together.
    pub entries: u32,
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
    pub(super) target: Target,
    pub(super) done: oneshot::Sender<Result<Received, OutputError>>,
}

pub(super) enum Target {
    Stream { writer: Box<dyn AsyncWrite + Send + Unpin>, max_bytes: u64 },
    File { file: NamedTempFile, path: PathBuf, max_bytes: u64 },
    Folder { staging: Staging, limits: Limits },
}

/// Tells when an output is there.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Received, OutputError>>);

impl Output {
    fn new(target: Target) -> (Self, Receipt) {
        let (done, receipt) = oneshot::channel();
        (Self { target, done }, Receipt(receipt))
    }

    /// A stream of at most `max_bytes` into `writer`, which is shut down at the end.
    pub fn stream(writer: impl AsyncWrite + Send + Unpin + 'static, max_bytes: u64) -> (Self, Receipt) {
        Self::new(Target::Stream { writer: Box::new(writer), max_bytes })
    }

    /// A stream of at most `max_bytes` into the file `path`, which appears, or is replaced, when it is whole.
    pub fn file(path: impl AsRef<Path>, max_bytes: u64) -> Result<(Self, Receipt), OutputError> {
        let path = path.as_ref();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |error| OutputError::Write(path.display().to_string(), error);
        stale::sweep(folder);
        let file = tempfile::Builder::new()
            .prefix(stale::PREFIX)
            // As the user's umask has it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(failed)?;
        stale::hold(file.as_file()).map_err(failed)?;
        Ok(Self::new(Target::File { file, path: path.to_owned(), max_bytes }))
    }

    /// A tree into the folder `path`, which must not exist or be empty, and appears when the tree is whole.
    ///
    /// Files belong to this process's user, without set-user-id, set-group-id and sticky bits and without extended
    /// attributes. Devices, pipes and links that lead out of the folder are refused.
    pub fn folder(path: impl AsRef<Path>, limits: Limits) -> Result<(Self, Receipt), OutputError> {
        Ok(Self::new(Target::Folder { staging: Staging::new(path.as_ref())?, limits }))
    }
}

impl Receipt {
    /// Why the output was refused, if it was by now. One that is there is lost by the question.
    pub(crate) fn refused(&mut self) -> Option<OutputError> {
        self.0.try_recv().ok()?.err()
    }

    /// Waits until the output is there, or can't come any more.
    pub async fn wait(self) -> Result<Received, OutputError> {
        self.0.await.unwrap_or(Err(OutputError::Missing))
    }
}
