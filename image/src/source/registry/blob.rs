//! A layer blob as one stream, however often the connection breaks.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::client::{Attempt, Client, Watch, pause_before};
use super::retry;
use crate::error::Error;
use crate::oci::BlobRef;

/// Bytes that count as getting on.
const PROGRESS: u64 = 256 << 10;

/// Reads a blob of known size. After a broken or stalled connection it goes on where it was; the converter checks the digest of
/// the whole, so a server that resumes with other bytes is found out.
pub(super) struct BlobReader<'a> {
    client: &'a Client,
    watch: Watch<'a>,
    blob: BlobRef,
    what: String,
    body: Option<Box<dyn Read + Send>>,
    endpoint: usize,
    /// Bytes delivered.
    at: u64,
    /// Attempts since the download last got on.
    attempts: u32,
    /// Where it was then.
    mark: u64,
    slow: Slow,
}

/// Time spent waiting for the network and what it brought.
#[derive(Default)]
struct Slow {
    waited: Duration,
    bytes: u64,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(client: &'a Client, blob: &BlobRef, watch: Watch<'a>) -> Self {
        let what = format!("layer {}", blob.digest);
        Self {
            client,
            watch,
            blob: blob.clone(),
            what,
            body: None,
            endpoint: 0,
            at: 0,
            attempts: 0,
            mark: 0,
            slow: Slow::default(),
        }
    }

    /// A body that starts at `self.at`.
    fn connect(&self) -> Result<Box<dyn Read + Send>, Attempt> {
        let path = format!("blobs/{}", self.blob.digest);
        let response = self.client.attempt(self.endpoint, &self.what, &path, None, self.at)?;
        let fatal = |why: &str| Attempt::Fatal(self.client.error(self.endpoint, &self.what, why));
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let partial = response.status().as_u16() == 206;
        let start = if partial {
            content_range_start(header("content-range").unwrap_or_default()).unwrap_or(u64::MAX)
        } else {
            0
        };
        if partial && start != self.at {
            return Err(fatal("the registry resumes at another place than asked"));
        }
        if let Some(length) = header("content-length").and_then(|text| text.parse::<u64>().ok())
            && length.checked_add(start) != Some(self.blob.size)
        {
            return Err(fatal(&format!(
                "the registry has {} bytes, the manifest says {}",
                length.saturating_add(start),
                self.blob.size
            )));
        }
        let mut body: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        if start < self.at {
            // No ranges here: the beginning comes again and is dropped.
            let skipped = io::copy(&mut (&mut body).take(self.at), &mut io::sink())
                .map_err(|error| self.client.again(self.endpoint, &self.what, &error.to_string()))?;
            if skipped < self.at {
                return Err(self.client.again(self.endpoint, &self.what, "the connection was closed early"));
            }
        }
        Ok(body)
    }

    /// After a failure: waits, moves on to the next endpoint, or gives up.
    fn recover(&mut self, failure: Attempt) -> Result<(), Error> {
        self.body = None;
        self.slow = Slow::default();
        let (error, after, hopeless) = match failure {
            Attempt::Fatal(error) => (error, None, true),
            Attempt::Again { error, after } => (error, after, false),
        };
        self.attempts += 1;
        if hopeless || self.attempts >= retry::ATTEMPTS {
            if self.endpoint + 1 == self.client.endpoints.len() {
                return Err(error);
            }
            self.endpoint += 1;
            self.attempts = 0;
            return Ok(());
        }
        pause_before(self.attempts + 1, &self.what, error, after, self.watch)
    }

    fn read_body(&mut self, body: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, Attempt> {
        let start = Instant::now();
        let n = body
            .read(buffer)
            .map_err(|error| self.client.again(self.endpoint, &self.what, &error.to_string()))?;
        if n == 0 && self.at < self.blob.size {
            return Err(self.client.again(self.endpoint, &self.what, "the connection was closed early"));
        }
        self.slow.waited += start.elapsed();
        self.slow.bytes += n as u64;
        let limits = &self.client.timeouts;
        if self.slow.waited >= limits.window {
            if self.slow.bytes < limits.min_bytes && n > 0 {
                let why = format!("only {} bytes in {} s", self.slow.bytes, limits.window.as_secs());
                return Err(self.client.again(self.endpoint, &self.what, &why));
            }
            self.slow = Slow::default();
        }
        Ok(n)
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.watch.stop.is_set() {
                return Err(io::Error::other("stopped, because another layer failed"));
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => match self.connect() {
                    Ok(body) => body,
                    Err(failure) => {
                        self.recover(failure).map_err(io::Error::other)?;
                        continue;
                    }
                },
            };
            match self.read_body(&mut *body, buffer) {
                Ok(n) => {
                    self.at += n as u64;
                    // A server that gives a few bytes for each connection would otherwise be asked for ever.
                    if self.at - self.mark >= PROGRESS {
                        (self.attempts, self.mark) = (0, self.at);
                    }
                    self.body = Some(body);
                    return Ok(n);
                }
                Err(failure) => self.recover(failure).map_err(io::Error::other)?,
            }
        }
    }
}

/// The first byte of `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
fn content_range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn content_ranges_are_read() {
        assert_eq!(super::content_range_start("bytes 100-199/200"), Some(100));
        for bad in ["", "bytes */200", "bytes -", "items 1-2/3"] {
            assert_eq!(super::content_range_start(bad), None, "{bad}");
        }
    }
}
