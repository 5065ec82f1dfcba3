//! containerd's content store (`services/content/v1/content.proto`): blobs in, their labels.

use std::collections::HashMap;
use std::time::Duration;

use cloister_image::Digest;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::scope::{Scope, found};
use super::{CRI, STREAM, failed, request};
use crate::api::content::v1 as api;
use crate::error::{Error, Result};

/// How long containerd may take for one piece, a sync of a whole blob to the disk included.
const PATIENCE: Duration = Duration::from_secs(120);

impl Scope {
    /// The size of a blob in bytes; `None` when it is not here.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let info = api::InfoRequest { digest: digest.to_string() };
        let reply = self.containerd.content().info(self.request(info)?).await;
        let info = found("look up a blob", reply)?.and_then(|reply| reply.into_inner().info);
        Ok(info.map(|info| info.size.cast_unsigned()))
    }

    /// Sets these labels of a blob and leaves its others.
    pub async fn label(&self, digest: &Digest, labels: HashMap<String, String>) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = api::Info { digest: digest.to_string(), labels, ..api::Info::default() };
        let update = api::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let reply = self.containerd.content().update(self.request(update)?).await;
        reply.map(drop).map_err(|status| failed("label a blob", &status))
    }

    /// A blob of at most `limit` bytes as a whole; `None` when it is not here.
    pub async fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        let mut stream = match self.containerd.read(CRI, &digest.to_string()).await {
            Ok(stream) => stream,
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        loop {
            let piece = tokio::time::timeout(PATIENCE, stream.message()).await.map_err(|_| silent(digest))?;
            match piece {
                Ok(Some(piece)) if (bytes.len() + piece.data.len()) as u64 > limit => {
                    return Err(Error::Invalid(format!("blob {digest}: more than {limit} bytes")));
                }
                Ok(Some(piece)) => bytes.extend(piece.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed("read a blob", &status)),
            }
        }
    }

    /// Starts to write a blob, or goes on where a writer of the same `name` stopped; `None` when it is here already.
    pub async fn writer(&self, name: &str, digest: &Digest, size: u64) -> Result<Option<Writer>> {
        let (to, requests) = mpsc::channel(1);
        let first = api::WriteContentRequest {
            action: api::WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: size.cast_signed(),
            expected: digest.to_string(),
            ..api::WriteContentRequest::default()
        };
        to.try_send(first.clone()).map_err(|_| Error::Died)?;
        let mut request = request(CRI, ReceiverStream::new(requests))?;
        request.set_timeout(STREAM);
        self.add_lease(&mut request);
        let mut client = self.containerd.content();
        let start = async {
            let mut from = client.write(request).await?.into_inner();
            let status = from.message().await?;
            Ok::<_, Status>((from, status))
        };
        match tokio::time::timeout(PATIENCE, start).await.map_err(|_| silent(digest))? {
            Ok((from, status)) => {
                let offset = status.map_or(0, |status| status.offset);
                let (scope, digest) = (self.clone(), *digest);
                Ok(Some(Writer { scope, to, from, base: first, offset, digest }))
            }
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(failed(&format!("write blob {digest}"), &status)),
        }
    }

    /// Forgets what a writer of this name has written.
    pub async fn abort(&self, name: &str) -> Result<()> {
        let abort = api::AbortRequest { r#ref: name.to_owned() };
        let reply = self.containerd.content().abort(self.request(abort)?).await;
        found("give up a blob", reply).map(drop)
    }
}

/// One blob on its way into the store. Dropped before [`Writer::commit`], what was written waits under its name.
pub struct Writer {
    scope: Scope,
    to: mpsc::Sender<api::WriteContentRequest>,
    from: Streaming<api::WriteContentResponse>,
    base: api::WriteContentRequest,
    offset: i64,
    digest: Digest,
}

impl Writer {
    /// Bytes that containerd has.
    pub fn offset(&self) -> u64 {
        self.offset.cast_unsigned()
    }

    /// Appends bytes.
    pub async fn write(&mut self, data: Vec<u8>) -> Result<()> {
        let offset = self.offset;
        self.offset += data.len() as i64;
        let action = api::WriteAction::Write.into();
        // Without the digest: with it containerd would end the call as soon as somebody else has written the blob.
        let write =
            api::WriteContentRequest { action, offset, data, expected: String::new(), ..self.base.clone() };
        self.call(write).await.map(drop)
    }

    /// Publishes the blob: containerd compares size and digest.
    pub async fn commit(mut self) -> Result<()> {
        let action = api::WriteAction::Commit.into();
        let commit = api::WriteContentRequest { action, offset: self.offset, ..self.base.clone() };
        if self.call(commit).await? {
            return Ok(());
        }
        // Somebody else wrote the same blob meanwhile. Asking for it once more puts it under our lease too.
        let Self { scope, base, digest, .. } = self;
        match scope.writer(&base.r#ref, &digest, base.total.cast_unsigned()).await? {
            None => Ok(()),
            Some(_) => Err(Error::Containerd(format!("blob {digest}: removed while it was written"))),
        }
    }

    /// One message and its answer; `false` when the blob is there already.
    async fn call(&mut self, request: api::WriteContentRequest) -> Result<bool> {
        let _ = self.to.send(request).await;
        let reply = tokio::time::timeout(PATIENCE, self.from.message()).await;
        match reply.map_err(|_| silent(&self.digest))? {
            Ok(Some(_)) => Ok(true),
            Ok(None) => Err(Error::Containerd(format!("blob {}: writing ended early", self.digest))),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(failed(&format!("write blob {}", self.digest), &status)),
        }
    }
}

fn silent(digest: &Digest) -> Error {
    Error::Containerd(format!("blob {digest}: no answer in {} s", PATIENCE.as_secs()))
}
