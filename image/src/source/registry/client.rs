//! Requests to one repository: endpoints in order, credentials on demand, retries.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::Body;
use ureq::http::Response;

use super::auth::{self, Demand};
use super::credentials::DockerConfig;
use super::http::{Failure, Http, Request, Timeouts};
use super::mirror::Endpoint;
use super::retry;
use crate::error::{Error, Result};
use crate::import::Stop;
use crate::oci::short;
use crate::progress::Progress;

/// How often to look whether a pause is still wanted.
const TICK: Duration = Duration::from_millis(50);

/// Everything needed to read one repository.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) http: Http,
    pub(super) config: Arc<DockerConfig>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) repository: String,
    pub(super) timeouts: Timeouts,
    /// `Authorization` by endpoint, once one was demanded.
    pub(super) authorization: Mutex<HashMap<usize, String>>,
}

/// A small answer, read whole.
pub(super) struct Small {
    pub(super) body: Vec<u8>,
    pub(super) media_type: String,
    pub(super) content_digest: Option<String>,
}

/// What a pause needs to know.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) stop: &'a Stop,
    pub(super) progress: &'a dyn Progress,
}

/// Why an attempt failed.
pub(super) enum Attempt {
    /// Not worth another try here; maybe elsewhere.
    Fatal(Error),
    /// Worth one, after at least this long.
    Again { error: Error, after: Option<Duration> },
}

impl Client {
    /// Reads a manifest or config from the first endpoint that has it.
    pub(super) fn small(
        &self,
        what: &str,
        path: &str,
        accept: Option<&str>,
        limit: u64,
        watch: Watch<'_>,
    ) -> Result<Small> {
        self.anywhere(|endpoint| {
            self.with_retries(what, watch, || {
                let response = self.attempt(endpoint, what, path, accept, 0)?;
                let header = |name: &str| {
                    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
                };
                let media_type = header("content-type").unwrap_or_default();
                let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
                let content_digest = header("docker-content-digest");
                let mut body = Vec::new();
                let read = response.into_body().into_reader().take(limit + 1).read_to_end(&mut body);
                read.map_err(|error| self.again(endpoint, what, &error.to_string()))?;
                if body.len() as u64 > limit {
                    let subject = format!("{what} from {}", self.endpoints[endpoint].registry);
                    return Err(Attempt::Fatal(Error::Limit {
                        subject,
                        got: body.len() as u64,
                        limit,
                        unit: "bytes",
                    }));
                }
                Ok(Small { body, media_type, content_digest })
            })
        })
    }

    /// Asks the endpoints in order; the last one's error is the one to show.
    fn anywhere<T>(&self, mut ask: impl FnMut(usize) -> Result<T>) -> Result<T> {
        let mut last = None;
        for endpoint in 0..self.endpoints.len() {
            match ask(endpoint) {
                Ok(found) => return Ok(found),
                Err(error) => {
                    tracing::debug!(registry = self.endpoints[endpoint].registry, %error, "endpoint failed");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::invalid(self.repository.clone(), "no registry to ask")))
    }

    /// Repeats an attempt, with pauses, while it fails in a way that may pass.
    pub(super) fn with_retries<T>(
        &self,
        what: &str,
        watch: Watch<'_>,
        mut attempt: impl FnMut() -> Result<T, Attempt>,
    ) -> Result<T> {
        let mut count = 1;
        loop {
            let (error, after) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Again { error, after }) => (error, after),
            };
            count += 1;
            if count > retry::ATTEMPTS {
                return Err(error);
            }
            pause_before(count, what, error, after, watch)?;
        }
    }

    /// One try at a GET below the repository, authenticating when asked to.
    pub(super) fn attempt(
        &self,
        endpoint: usize,
        what: &str,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response<Body>, Attempt> {
        let place = &self.endpoints[endpoint];
        let url = format!("{}/{}/{path}{}", place.api, self.repository, place.query);
        let plain_http = place.api.starts_with("http://");
        let mut authenticated = false;
        loop {
            let authorization = self.known_authorization(endpoint);
            let request = Request {
                url: &url,
                accept,
                authorization: authorization.as_deref(),
                from,
                form: None,
                plain_http,
            };
            let response =
                self.http.send(&request).map_err(|failure| self.failed(endpoint, what, failure))?;
            let status = response.status().as_u16();
            match status {
                200 | 206 => return Ok(response),
                401 if !authenticated => {
                    authenticated = true;
                    let header = self
                        .authenticate(endpoint, &response)
                        .map_err(|failure| self.denied(endpoint, what, failure))?;
                    self.authorization
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(endpoint, header);
                }
                _ => return Err(self.status(endpoint, what, response)),
            }
        }
    }

    pub(super) fn known_authorization(&self, endpoint: usize) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).get(&endpoint).cloned()
    }

    pub(super) fn authenticate(&self, endpoint: usize, response: &Response<Body>) -> Result<String, Failure> {
        let credentials = self
            .config
            .get(&self.endpoints[endpoint].registry, &self.repository)
            .map_err(|error| Failure { why: error.to_string(), transient: false })?;
        let headers = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let plain_http = self.endpoints[endpoint].api.starts_with("http://");
        auth::answer(
            &self.http,
            &Demand { headers, repository: &self.repository, credentials: credentials.as_ref(), plain_http },
        )
    }

    /// What an answer other than success means.
    pub(super) fn status(&self, endpoint: usize, what: &str, response: Response<Body>) -> Attempt {
        let status = response.status();
        let after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(retry::retry_after);
        let mut body = Vec::new();
        // Only for the message; what cannot be read is not shown.
        let _ = response.into_body().into_reader().take(4096).read_to_end(&mut body);
        let said = message_of(&body).map(|said| format!(": {said}")).unwrap_or_default();
        let why = match status.as_u16() {
            401 | 403 => format!("access denied ({status}){said}"),
            404 => format!("not found ({status}){said}"),
            _ => format!("{status}{said}"),
        };
        let error = self.error(endpoint, what, &why).answered(status.as_u16());
        match status.as_u16() {
            408 | 429 | 500 | 502 | 503 | 504 => match after {
                Some(after) if after > retry::MAX_RETRY_AFTER => Attempt::Fatal(self.error(
                    endpoint,
                    what,
                    &format!(
                        "{why}; it asks to come back in {} s, which is longer than we wait",
                        after.as_secs()
                    ),
                )),
                after => Attempt::Again { error, after },
            },
            _ => Attempt::Fatal(error),
        }
    }

    pub(super) fn failed(&self, endpoint: usize, what: &str, failure: Failure) -> Attempt {
        let error = self.error(endpoint, what, &failure.why);
        if failure.transient { Attempt::Again { error, after: None } } else { Attempt::Fatal(error) }
    }

    /// It wants credentials, and there are none that it takes.
    pub(super) fn denied(&self, endpoint: usize, what: &str, failure: Failure) -> Attempt {
        match self.failed(endpoint, what, failure) {
            Attempt::Fatal(error) => Attempt::Fatal(error.answered(401)),
            again => again,
        }
    }

    pub(super) fn again(&self, endpoint: usize, what: &str, why: &str) -> Attempt {
        Attempt::Again { error: self.error(endpoint, what, why), after: None }
    }

    pub(super) fn error(&self, endpoint: usize, what: &str, why: &str) -> Error {
        Error::Registry {
            registry: self.endpoints[endpoint].registry.clone(),
            what: what.to_owned(),
            why: why.to_owned(),
            status: None,
        }
    }
}

/// Waits before another attempt; gives the attempt's error back when the whole import has stopped meanwhile.
pub(super) fn pause_before(
    count: u32,
    what: &str,
    error: Error,
    after: Option<Duration>,
    watch: Watch<'_>,
) -> Result<()> {
    let pause = retry::pause(count).max(after.unwrap_or_default());
    watch.progress.message(&format!("{what}: {error}; trying again in {:.1} s", pause.as_secs_f64()));
    let until = std::time::Instant::now() + pause;
    while let Some(left) =
        until.checked_duration_since(std::time::Instant::now()).filter(|left| !left.is_zero())
    {
        if watch.stop.is_set() {
            return Err(error);
        }
        std::thread::sleep(left.min(TICK));
    }
    Ok(())
}

/// The registry's own words (distribution-spec, "Error Codes").
fn message_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        code: Option<String>,
        message: Option<String>,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let entry = errors.errors.into_iter().next()?;
    entry.message.filter(|text| !text.is_empty()).or(entry.code).map(|text| short(&text))
}
