//! Fetches an image of a build from another node.

use std::time::Duration;

use cloister_image::{BlobRef, Digest, Limits, Tree, Whole};
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_RANGE;

use super::Descriptor;
use super::connection::Connection;
use super::tls::Tls;
use crate::containerd::content::Writer;
use crate::containerd::scope::Scope;
use crate::error::{Error, Result};

/// Failures in a row, without a byte between them, after which a blob is given up.
const ATTEMPTS: u32 = 5;
/// Connections for one blob, whatever they achieved.
const CONNECTIONS: u32 = 1000;
/// Pause after a failure; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// How long nothing may arrive in the middle of a blob.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of an answer that is not a blob.
const MAX_TEXT: usize = 4096;

/// The fetching side.
#[derive(Debug)]
pub struct Client {
    tls: Tls,
}

impl Client {
    /// With these certificates.
    pub fn new(tls: Tls) -> Self {
        Self { tls }
    }

    /// Brings everything of an image into the content store, under the scope's lease.
    ///
    /// # Errors
    /// When the other node does not have it, is not one, or stays away.
    pub async fn fetch(
        &self,
        scope: &Scope,
        unique: &str,
        peer: &str,
        digest: &Digest,
    ) -> Result<(BlobRef, Whole)> {
        let mut fetch = Fetch { connection: Connection::new(&self.tls, peer), scope, unique, image: *digest };
        let top = fetch.top().await?;
        let mut tree = Tree::new(top.clone(), Limits::default())?;
        while let Some(wanted) = tree.wanted().cloned() {
            fetch.blob(&wanted.digest, wanted.size).await?;
            let content = scope.document(&wanted.digest, wanted.size).await?;
            tree.supply(&content.ok_or_else(|| Error::NotFound(format!("blob {}", wanted.digest)))?)?;
        }
        let whole = tree.finish()?;
        for (blob, size) in &whole.blobs {
            fetch.blob(blob, *size).await?;
        }
        Ok((top, whole))
    }
}

struct Fetch<'a> {
    connection: Connection<'a>,
    scope: &'a Scope,
    unique: &'a str,
    image: Digest,
}

impl Fetch<'_> {
    /// What the other node says the image is.
    async fn top(&mut self) -> Result<BlobRef> {
        let path = format!("/v1/images/{}", self.image);
        let mut tries = Tries::default();
        let text = loop {
            let attempt = match self.connection.get(&path, 0).await {
                Ok(response) if response.status() == StatusCode::OK => self.text(response.into_body()).await,
                Ok(response) => Err(self.refusal(response.status(), response.into_body()).await),
                Err(error) => Err(error),
            };
            match attempt {
                Ok(text) => break text,
                Err(error) => tries.again(error, 0).await?,
            }
        };
        let said: Descriptor = serde_json::from_slice(&text)
            .map_err(|error| Error::Invalid(format!("image {}: {error}", self.image)))?;
        if said.digest != self.image {
            return Err(Error::Invalid(format!("asked for image {}, got {}", self.image, said.digest)));
        }
        Ok(said.into())
    }

    /// One blob, unless it is here.
    async fn blob(&mut self, digest: &Digest, size: u64) -> Result<()> {
        let name = format!("{}-{}", self.unique, digest.hex());
        let Some(mut writer) = self.scope.writer(&name, digest, size).await? else { return Ok(()) };
        let path = format!("/v1/images/{}/blobs/{digest}", self.image);
        let mut tries = Tries::default();
        let result = loop {
            match self.rest(&path, &mut writer, size).await {
                Ok(()) => break writer.commit().await,
                Err(error) => {
                    self.connection.close();
                    if let Err(error) = tries.again(error, writer.offset()).await {
                        break Err(error);
                    }
                }
            }
        };
        if result.is_err() {
            let _ = self.scope.abort(&name).await;
        }
        result
    }

    /// What is missing of a blob, as far as the connection lasts.
    async fn rest(&mut self, path: &str, writer: &mut Writer, size: u64) -> Result<()> {
        let start = writer.offset();
        if start == size {
            return Ok(());
        }
        let response = self.connection.get(path, start).await?;
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        match response.status() {
            StatusCode::OK if start == 0 => {}
            StatusCode::PARTIAL_CONTENT
                if range.is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) => {}
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                return Err(Error::Invalid(format!("{path}: not the bytes from {start}")));
            }
            status => return Err(self.refusal(status, response.into_body()).await),
        }
        let mut body = response.into_body();
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await;
            let frame = frame.map_err(|_| self.connection.failed(&"stopped in the middle of a blob"))?;
            let Some(frame) = frame else { break };
            let data = frame.map_err(|error| self.connection.failed(&error))?.into_data();
            let data = data.unwrap_or_default();
            if writer.offset() + data.len() as u64 > size {
                return Err(Error::Invalid(format!("{path}: more than {size} bytes")));
            }
            if !data.is_empty() {
                writer.write(data.into()).await?;
            }
        }
        match writer.offset() == size {
            true => Ok(()),
            false => Err(self.connection.failed(&"ended in the middle of a blob")),
        }
    }

    async fn text(&self, body: Incoming) -> Result<Vec<u8>> {
        let collected = tokio::time::timeout(SILENCE, Limited::new(body, MAX_TEXT).collect()).await;
        let collected = collected.map_err(|_| self.connection.failed(&"no end of an answer"))?;
        Ok(collected.map_err(|error| self.connection.failed(&error))?.to_bytes().into())
    }

    /// An answer that is none; only a node that is in trouble is asked again.
    async fn refusal(&mut self, status: StatusCode, body: Incoming) -> Error {
        let text = match body.size_hint().exact() {
            Some(_) => self.text(body).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        match status {
            StatusCode::NOT_FOUND => Error::NotFound(text.trim_end_matches(": not found").to_owned()),
            status if status.is_server_error() => self.connection.failed(&format!("{status}: {text}")),
            status => Error::Invalid(format!("{status}: {text}")),
        }
    }
}

/// How often something failed.
#[derive(Default)]
struct Tries {
    in_a_row: u32,
    all: u32,
    offset: u64,
}

impl Tries {
    /// Waits before another attempt; the error when there should be none.
    async fn again(&mut self, error: Error, offset: u64) -> Result<()> {
        let pause = self.pause(error, offset)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn pause(&mut self, error: Error, offset: u64) -> Result<Duration> {
        self.all += 1;
        self.in_a_row = if offset > self.offset { 1 } else { self.in_a_row + 1 };
        self.offset = offset;
        if !matches!(error, Error::Peer(_)) || self.in_a_row >= ATTEMPTS || self.all >= CONNECTIONS {
            return Err(error);
        }
        tracing::debug!(%error, offset, "fetching goes on");
        Ok(PAUSE * 2_u32.pow(self.in_a_row - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_renews_patience_and_refusals_end_it() {
        let gone = || Error::Peer("gone".into());
        let mut tries = Tries::default();
        for offset in 1..50 {
            assert_eq!(tries.pause(gone(), offset).unwrap(), PAUSE);
        }
        for n in 1..ATTEMPTS - 1 {
            assert_eq!(tries.pause(gone(), 49).unwrap(), PAUSE * 2_u32.pow(n));
        }
        assert!(tries.pause(gone(), 49).is_err());
        assert!(Tries::default().pause(Error::NotFound("x".into()), 0).is_err());
    }
}
