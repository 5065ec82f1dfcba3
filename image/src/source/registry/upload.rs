//! Requests that change something at a registry. They go to the one endpoint that the image's name means.

use std::io::Read;
use std::sync::PoisonError;

use ureq::http::{Response, Uri};
use ureq::{Body, SendBody};

use super::client::{Attempt, Client};
use super::http::{Failure, Http, join, origin};

/// Redirects followed for a question.
const MAX_REDIRECTS: usize = 5;

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Method {
    /// Ask whether something is there.
    #[default]
    Head,
    /// Begin an upload.
    Post,
    /// Send a body.
    Put,
}

/// A request; its body is separate, because a second try needs another one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Upload<'a> {
    pub(super) method: Method,
    pub(super) media_type: Option<&'a str>,
    /// Bytes of the body.
    pub(super) size: u64,
}

impl Client {
    /// The URL of a path below the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{}/{path}", self.endpoints[0].api, self.repository)
    }

    /// Where a `Location` of this registry leads.
    pub(super) fn place(&self, location: &str) -> Option<String> {
        let base: Uri = self.endpoints[0].api.parse().ok()?;
        let url = join(&base, location)?;
        matches!(url.scheme_str(), Some("http" | "https")).then(|| url.to_string())
    }

    /// One try, authenticating when asked to. A request with a body is asked for credentials before, by that which
    /// began it; one that is asked nevertheless is to be tried again.
    pub(super) fn upload(
        &self,
        what: &str,
        url: &str,
        upload: &Upload<'_>,
        body: Option<&mut dyn Read>,
    ) -> Result<Response<Body>, Attempt> {
        let plain = self.endpoints[0].api.starts_with("http://");
        let failed = |failure| self.failed(0, what, failure);
        let response = self.http.upload(url, upload, self.authorization_for(url).as_deref(), plain, body);
        let response = response.map_err(failed)?;
        if response.status().as_u16() != 401 || !self.is_own(url) {
            return Ok(response);
        }
        let known = self.known_authorization(0);
        let header = self.authenticate(0, &response).map_err(|failure| self.denied(0, what, failure))?;
        if known.as_ref() == Some(&header) {
            return Ok(response);
        }
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).insert(0, header.clone());
        match upload.method {
            Method::Put => Err(self.again(0, what, "the registry wants other credentials")),
            _ => self.http.upload(url, upload, Some(&header), plain, None).map_err(failed),
        }
    }

    /// Credentials go to the registry itself and nowhere else.
    fn authorization_for(&self, url: &str) -> Option<String> {
        self.known_authorization(0).filter(|_| self.is_own(url))
    }

    fn is_own(&self, url: &str) -> bool {
        let of = |url: &str| url.parse::<Uri>().ok().map(|url| origin(&url));
        of(url).is_some() && of(url) == of(&self.endpoints[0].api)
    }
}

impl Http {
    /// Sends it; redirects are followed for questions only, without credentials.
    fn upload(
        &self,
        url: &str,
        upload: &Upload<'_>,
        authorization: Option<&str>,
        plain_http: bool,
        body: Option<&mut dyn Read>,
    ) -> Result<Response<Body>, Failure> {
        let fatal = |why: String| Failure { why, transient: false };
        let mut url: Uri = url.parse().map_err(|error| fatal(format!("bad URL {url}: {error}")))?;
        let check = |url: &Uri| match url.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if plain_http => Ok(()),
            _ => Err(fatal(format!("refusing {url}: not HTTPS, and plain HTTP was not asked for"))),
        };
        check(&url)?;
        let mut request = match upload.method {
            Method::Head => {
                let mut authorization = authorization;
                for _ in 0..=MAX_REDIRECTS {
                    let mut call = self.agent.head(&url);
                    if let Some(authorization) = authorization.take() {
                        call = call.header("authorization", authorization);
                    }
                    let response = call.call().map_err(|error| Failure::of(&error))?;
                    let target = response.headers().get("location").and_then(|value| value.to_str().ok());
                    match (response.status().as_u16(), target.and_then(|target| join(&url, target))) {
                        (301 | 302 | 303 | 307 | 308, Some(next)) => {
                            check(&next)?;
                            url = next;
                        }
                        _ => return Ok(response),
                    }
                }
                return Err(fatal(format!("more than {MAX_REDIRECTS} redirects to {url}")));
            }
            Method::Post => self.agent.post(&url),
            Method::Put => self.agent.put(&url),
        };
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(media_type) = upload.media_type {
            request = request.header("content-type", media_type);
        }
        let response = match body {
            Some(mut body) => {
                let request = request.header("content-length", upload.size.to_string());
                request.send(SendBody::from_reader(&mut body))
            }
            None => request.send_empty(),
        };
        response.map_err(|error| Failure::of(&error))
    }
}
