//! A tar archive behind a URL.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use cloister_crds::{BuildReason, HttpSource};
use cloister_image::base64;
use cloister_image::source::registry::Timeouts;
use cloister_image::source::registry::http::{Http, Request};

use crate::archive::{copy, local, scratch};
use crate::hash::Hashing;
use crate::trust::Trust;
use crate::watch::Watch;
use crate::{Error, Inputs, Limits, Result};

/// Downloads that are begun before the attempt fails, and the pause between two.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// What is needed to download an archive.
#[derive(Debug)]
pub(crate) struct Download {
    url: String,
    checksum: String,
    authorization: Option<String>,
    trust: Trust,
    limits: Limits,
}

impl Download {
    /// Reads the Secret, if there is one.
    pub(crate) fn new(source: &HttpSource, inputs: &Inputs) -> Result<Self> {
        let plain = source.url.starts_with("http://");
        let bad = |why: &str| Error::new(BuildReason::InvalidSpec, format!("source.http.url: {why}"));
        if plain && !inputs.limits.plain_http {
            return Err(bad("http:// is not taken here: use https://"));
        }
        if plain && source.credentials.is_some() {
            return Err(bad("credentials are only sent over https://"));
        }
        let authorization = match &source.credentials {
            None => None,
            Some(secret) => {
                let (user, password) = inputs.password("source.http.credentials", &secret.name)?;
                Some(format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes())))
            }
        };
        Ok(Self {
            url: source.url.clone(),
            checksum: source.checksum.clone(),
            authorization,
            trust: Trust::new(inputs)?,
            limits: inputs.limits,
        })
    }

    /// Downloads into a file below `work`; what it holds has the checksum. Blocks.
    pub(crate) fn run(&self, work: &Path, watch: &Watch) -> Result<File> {
        let certificates = self.trust.file(work)?;
        let (usual, left) = (Timeouts::default(), watch.left()?);
        let timeouts = Timeouts { connect: usual.connect.min(left), read: usual.read.min(left), ..usual };
        let certificates = certificates.as_ref().map(tempfile::NamedTempFile::path);
        let http = Http::reaching(certificates, &timeouts, self.limits.reach)
            .map_err(|error| Error::new(BuildReason::InvalidSpec, format!("spec.caBundle: {error}")))?;
        let mut tries = 1;
        loop {
            match self.once(&http, work, watch) {
                Err(error) if error.reason().is_retried() && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE.min(watch.left()?));
                    watch.check()?;
                }
                ended => return ended,
            }
        }
    }

    fn once(&self, http: &Http, work: &Path, watch: &Watch) -> Result<File> {
        let request = Request {
            url: &self.url,
            authorization: self.authorization.as_deref(),
            plain_http: self.url.starts_with("http://"),
            ..Request::default()
        };
        let what = format!("source.http: {}", self.url);
        let response = http.send(&request).map_err(|failure| {
            let say = if failure.transient { Error::unavailable } else { Error::invalid };
            say(format!("{what}: {}", failure.why))
        })?;
        let status = response.status();
        let answered = |reason, what_to_do: &str| {
            Err(Error::new(reason, format!("{what}: the server answered {status}{what_to_do}")))
        };
        match status.as_u16() {
            200 => {}
            401 | 403 if self.authorization.is_none() => {
                return answered(BuildReason::AccessDenied, ": name a Secret in source.http.credentials");
            }
            401 | 403 => return answered(BuildReason::AccessDenied, ": look at source.http.credentials"),
            404 | 410 => return answered(BuildReason::SourceNotFound, ""),
            408 | 425 | 429 | 500..=599 => return answered(BuildReason::SourceUnavailable, ""),
            _ => return answered(BuildReason::SourceInvalid, ""),
        }
        let mut out = Hashing::new(scratch(work)?);
        let read = |error| Error::unavailable(format!("{what}: {error}"));
        copy(&mut response.into_body().into_reader(), &mut out, self.limits.packed, watch, read)?
            .ok_or_else(|| Error::invalid(format!("{what} has more than {} bytes", self.limits.packed)))?;
        let (mut file, digest) = out.end();
        if digest.to_string() != self.checksum {
            let why = format!("{what}: the archive is {digest}, source.http.checksum says {}", self.checksum);
            return Err(Error::new(BuildReason::SourceMismatch, why));
        }
        file.seek(SeekFrom::Start(0)).map_err(|error| local("reading a file", &error))?;
        Ok(file)
    }
}
