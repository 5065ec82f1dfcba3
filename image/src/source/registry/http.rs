//! One HTTP exchange: TLS, time limits, redirects. Retries and credentials are the callers'.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::reach::{Lookup, Reach};
use crate::error::{Error, IoContext, Result};

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Longest bundle of certificates, in bytes.
const MAX_BUNDLE: u64 = 16 << 20;
/// Where distributions keep the certificates they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long the network may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Until the answer's header is there, and between two reads of its body.
    pub read: Duration,
    /// A body must bring [`Timeouts::min_bytes`] in this time.
    pub window: Duration,
    /// See [`Timeouts::window`].
    pub min_bytes: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            read: Duration::from_secs(30),
            window: Duration::from_secs(60),
            min_bytes: 64 << 10,
        }
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub struct Failure {
    /// One line.
    pub why: String,
    /// Worth another try.
    pub transient: bool,
}

/// A connection pool with our rules.
#[derive(Debug)]
pub struct Http {
    pub(super) agent: Agent,
}

/// One request, GET unless there is a form to post.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// Where to.
    pub url: &'a str,
    /// Media types that are taken.
    pub accept: Option<&'a str>,
    /// Sent to the URL's own origin only, never to where it redirects.
    pub authorization: Option<&'a str>,
    /// First byte wanted.
    pub from: u64,
    /// To be posted.
    pub form: Option<&'a str>,
    /// The user asked for plain HTTP with this endpoint; else every step must be HTTPS.
    pub plain_http: bool,
}

impl Http {
    /// Trusts the system's certificates and those of a PEM file, and asks any server.
    ///
    /// # Errors
    /// A file can't be read, or holds no certificate.
    pub fn new(ca_cert: Option<&Path>, timeouts: &Timeouts) -> Result<Self> {
        Self::reaching(ca_cert, timeouts, Reach::Anywhere)
    }

    /// The same, for servers within `reach`, whatever names and redirects stand for them.
    ///
    /// # Errors
    /// As for [`Http::new`].
    pub fn reaching(ca_cert: Option<&Path>, timeouts: &Timeouts, reach: Reach) -> Result<Self> {
        let mut roots = system_roots()?;
        if let Some(path) = ca_cert {
            let own = read_bundle(path)?;
            if own.is_empty() {
                return Err(Error::invalid(path.display().to_string(), "no certificate in it"));
            }
            roots.extend(own);
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // Redirects are followed below, with our own rules for credentials.
            .max_redirects(0)
            .user_agent(concat!("cloister/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_send_request(Some(timeouts.read))
            .timeout_recv_response(Some(timeouts.read))
            .timeout_per_read(Some(timeouts.read))
            .timeout_per_write(Some(timeouts.read))
            .max_response_header_size(64 << 10)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), Lookup::new(reach));
        Ok(Self { agent })
    }

    /// Performs a request and follows redirects.
    ///
    /// # Errors
    /// There was no answer; an answer that says no is none.
    pub fn send(&self, request: &Request<'_>) -> Result<Response<Body>, Failure> {
        let fatal = |why: String| Failure { why, transient: false };
        let mut url: Uri =
            request.url.parse().map_err(|error| fatal(format!("bad URL {}: {error}", request.url)))?;
        let origin = origin(&url);
        for _ in 0..=MAX_REDIRECTS {
            let scheme = url.scheme_str().unwrap_or_default();
            if scheme != "https" && !(scheme == "http" && request.plain_http) {
                return Err(fatal(format!("refusing {url}: not HTTPS, and plain HTTP was not asked for")));
            }
            // A credential goes where the user's configuration says it belongs and nowhere else.
            let authorization = request.authorization.filter(|_| self::origin(&url) == origin);
            let response = match request.form {
                Some(form) => {
                    let call =
                        self.agent.post(&url).header("content-type", "application/x-www-form-urlencoded");
                    call.send(form)
                }
                None => {
                    let mut call = self.agent.get(&url);
                    if let Some(accept) = request.accept {
                        call = call.header("accept", accept);
                    }
                    if let Some(authorization) = authorization {
                        call = call.header("authorization", authorization);
                    }
                    if request.from > 0 {
                        call = call.header("range", format!("bytes={}-", request.from));
                    }
                    call.call()
                }
            };
            let response = response.map_err(|error| Failure::of(&error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) || request.form.is_some() {
                return Ok(response);
            }
            let target =
                response.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = join(&url, target)
                .ok_or_else(|| fatal(format!("redirected from {url} to no usable place")))?;
        }
        Err(fatal(format!("more than {MAX_REDIRECTS} redirects from {}", request.url)))
    }
}

impl Failure {
    pub(super) fn of(error: &ureq::Error) -> Self {
        if let Some(rustls::Error::InvalidMessage(_)) = tls(error) {
            let why = "its answer is not TLS; if it speaks plain HTTP, say --plain-http (for a mirror: an http:// URL)";
            return Self { why: why.to_owned(), transient: false };
        }
        let transient = match error {
            // A certificate does not get better by trying again.
            ureq::Error::Io(_) => tls(error).is_none(),
            ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_) => true,
            _ => false,
        };
        // Our own words, from where names are looked up.
        let why = if let ureq::Error::Other(own) = error { own.to_string() } else { error.to_string() };
        Self { why: crate::oci::short(&why), transient }
    }
}

/// What TLS says, if it is TLS that failed.
fn tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        ureq::Error::Rustls(error) => Some(error),
        _ => None,
    }
}

/// Scheme, host and port: what credentials belong to.
pub(super) fn origin(url: &Uri) -> (Option<String>, Option<String>, Option<u16>) {
    let scheme = url.scheme_str().map(str::to_lowercase);
    let default = if scheme.as_deref() == Some("http") { 80 } else { 443 };
    (scheme, url.host().map(str::to_lowercase), Some(url.port_u16().unwrap_or(default)))
}

/// Where a `Location` leads: an absolute URL, or a path on the same host.
pub(super) fn join(base: &Uri, target: &str) -> Option<Uri> {
    let target = target.split('#').next()?;
    if target.contains("://") {
        return target.parse().ok();
    }
    if let Some(rest) = target.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    let authority = base.authority()?;
    if target.starts_with('/') {
        return format!("{}://{authority}{target}", base.scheme_str()?).parse().ok();
    }
    None
}

/// The file with the certificates that this machine trusts, if it has one: `SSL_CERT_FILE`, or the distribution's.
pub fn system_bundle() -> Option<PathBuf> {
    let said = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    said.or_else(|| BUNDLES.map(PathBuf::from).into_iter().find(|path| path.exists()))
}

fn system_roots() -> Result<Vec<Certificate<'static>>> {
    system_bundle().map_or(Ok(Vec::new()), |path| read_bundle(&path))
}

fn read_bundle(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let mut pem = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BUNDLE).read_to_end(&mut pem))
        .at("read", path)?;
    ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
            Ok(_) => None,
            Err(error) => {
                Some(Err(Error::invalid(path.display().to_string(), format!("bad certificate: {error}"))))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve_against_the_request() {
        let base: Uri = "https://reg:5000/v2/a/blobs/x".parse().unwrap();
        let to = |target| join(&base, target).map(|url| url.to_string());
        assert_eq!(to("https://cdn/x?y#z").as_deref(), Some("https://cdn/x?y"));
        assert_eq!(to("/other?q=1").as_deref(), Some("https://reg:5000/other?q=1"));
        assert_eq!(to("//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(to(""), None);
        assert_eq!(to("relative"), None);
    }

    #[test]
    fn plain_http_is_refused_unless_asked_for() {
        let http = Http::new(None, &Timeouts::default()).unwrap();
        let failure =
            http.send(&Request { url: "http://127.0.0.1:1/token", ..Request::default() }).unwrap_err();
        assert!(failure.why.contains("not HTTPS") && !failure.transient, "{}", failure.why);
        let failure = http
            .send(&Request { url: "http://127.0.0.1:1/token", plain_http: true, ..Request::default() })
            .unwrap_err();
        assert!(failure.transient, "{}", failure.why);
    }

    /// Answers one request with a redirect; the address it listens on.
    fn redirects(listener: std::net::TcpListener, to: String) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; 4096];
            let _ = stream.read(&mut header).unwrap();
            let answer = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        })
    }

    #[test]
    fn beyond_the_host_neither_names_nor_redirects_lead_back_to_it() {
        let http = Http::reaching(None, &Timeouts::default(), Reach::BeyondHost).unwrap();
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        own.set_nonblocking(true).unwrap();
        let url = format!("http://localhost:{}/", own.local_addr().unwrap().port());
        let asked =
            |url: &str| http.send(&Request { url, plain_http: true, ..Request::default() }).unwrap_err();
        let failure = asked(&url);
        assert!(failure.why.contains("this machine's own") && !failure.transient, "{}", failure.why);

        // An address that is not loopback: no packet is sent to find it.
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        probe.connect("192.0.2.1:9").unwrap();
        let other = std::net::TcpListener::bind((probe.local_addr().unwrap().ip(), 0)).unwrap();
        let from = format!("http://{}/", other.local_addr().unwrap());
        let served = redirects(other, url);
        let failure = asked(&from);
        served.join().unwrap();
        assert!(failure.why.contains("localhost is this machine's own"), "{}", failure.why);
        assert!(own.accept().is_err(), "it was connected to");
    }

    #[test]
    fn origins_compare_with_default_ports() {
        let of = |url: &str| origin(&url.parse().unwrap());
        assert_eq!(of("https://Reg/x"), of("https://reg:443/y"));
        assert_ne!(of("https://reg/x"), of("http://reg/x"));
        assert_ne!(of("https://reg/x"), of("https://reg.evil/x"));
    }
}
