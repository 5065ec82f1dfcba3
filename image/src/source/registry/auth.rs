//! From a 401 to an `Authorization` header (docker registry token and OAuth2 specifications, RFC 7617).

use std::fmt::Write;
use std::io::Read;

use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::credentials::Credentials;
use super::http::{Failure, Http, Request};
use crate::base64;

/// Longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

/// What the registry wants, and for what.
pub(super) struct Demand<'a> {
    /// `WWW-Authenticate` values.
    pub(super) headers: Vec<&'a str>,
    /// Repository to read.
    pub(super) repository: &'a str,
    pub(super) credentials: Option<&'a Credentials>,
    /// The registry itself is spoken to without TLS, as the user asked; its token server may be too.
    pub(super) plain_http: bool,
}

/// The `Authorization` header that answers the demand.
pub(super) fn answer(http: &Http, demand: &Demand<'_>) -> Result<String, Failure> {
    let challenges: Vec<Challenge> =
        demand.headers.iter().flat_map(|header| challenge::parse(header)).collect();
    if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
        return bearer_token(http, bearer, demand).map(|token| format!("Bearer {token}"));
    }
    if challenges.iter().any(|challenge| challenge.scheme == "basic") {
        return match demand.credentials {
            Some(Credentials::Password { user, password }) => Ok(basic(user, password)),
            Some(_) => Err(refused(
                "the registry wants a user name and a password, the credentials hold only a token",
            )),
            None => Err(refused("the registry wants credentials and none are configured for it")),
        };
    }
    Err(refused("the registry refuses the request and names no way to authenticate that is known here"))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes()))
}

fn refused(why: &str) -> Failure {
    Failure { why: why.to_owned(), transient: false }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn bearer_token(http: &Http, challenge: &Challenge, demand: &Demand<'_>) -> Result<String, Failure> {
    if let Some(Credentials::RegistryToken(token)) = demand.credentials {
        return Ok(token.clone());
    }
    let realm = challenge.param("realm").ok_or_else(|| refused("the registry names no token server"))?;
    let service = challenge.param("service").unwrap_or_default();
    let own = format!("repository:{}:pull", demand.repository);
    let scope = challenge.param("scope").unwrap_or(&own);
    let mut query = String::new();
    for (key, value) in [("service", service), ("scope", scope)] {
        if !value.is_empty() {
            let _ = write!(query, "{}{key}={}", if query.is_empty() { "" } else { "&" }, escape(value));
        }
    }
    let response = if let Some(Credentials::IdentityToken(token)) = demand.credentials {
        let form =
            format!("grant_type=refresh_token&client_id=cloister&{query}&refresh_token={}", escape(token));
        http.send(&Request {
            url: realm,
            form: Some(&form),
            plain_http: demand.plain_http,
            ..Request::default()
        })
    } else {
        let url = format!("{realm}{}{query}", if realm.contains('?') { "&" } else { "?" });
        let authorization = match demand.credentials {
            Some(Credentials::Password { user, password }) => Some(basic(user, password)),
            _ => None,
        };
        http.send(&Request {
            url: &url,
            authorization: authorization.as_deref(),
            plain_http: demand.plain_http,
            ..Request::default()
        })
    };
    let response =
        response.map_err(|failure| Failure { why: format!("token server: {}", failure.why), ..failure })?;
    let status = response.status().as_u16();
    if status != 200 {
        let known = if demand.credentials.is_some() {
            "with the configured credentials"
        } else {
            "without credentials"
        };
        let transient = matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
        return Err(Failure {
            why: format!("token server answered {status} to a request {known}"),
            transient,
        });
    }
    let mut body = Vec::new();
    response
        .into_body()
        .into_reader()
        .take(MAX_TOKEN + 1)
        .read_to_end(&mut body)
        .map_err(|error| Failure { why: format!("token server: {error}"), transient: true })?;
    if body.len() as u64 > MAX_TOKEN {
        return Err(refused("token server: the answer is larger than 1 MiB"));
    }
    let token: Token =
        serde_json::from_slice(&body).map_err(|_| refused("token server: the answer holds no token"))?;
    token
        .token
        .or(token.access_token)
        // It becomes part of a header.
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| refused("token server: the answer holds no token"))
}

/// Percent-encodes for a query or a form.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn queries_are_escaped() {
        assert_eq!(super::escape("repository:a/b:pull&x=é"), "repository%3Aa%2Fb%3Apull%26x%3D%C3%A9");
    }
}
