//! A server on a loopback port: files, redirects, refusals, and git's own `http-backend`, over TLS or without.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a path is answered with.
#[derive(Clone)]
pub enum Answer {
    Bytes(Vec<u8>),
    /// A media type too.
    Typed(&'static str, Vec<u8>),
    Redirect(String),
    Status(u16),
    /// Nothing, for as long as the client waits.
    Silence,
    /// The repositories of a folder.
    Git(PathBuf),
}

/// A request that came: path and `Authorization`.
pub type Seen = (String, Option<String>);

/// The server; it goes with the process.
pub struct Server {
    /// `https://127.0.0.1:PORT`, or http.
    pub url: String,
    /// Whom clients have to trust.
    pub ca: PathBuf,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    _dir: tempfile::TempDir,
}

struct Site {
    /// By the beginning of a path, the longest first.
    answers: Vec<(String, Answer)>,
    /// What `Authorization` has to be.
    authorization: Option<String>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub fn tls(answers: &[(&str, Answer)], user: Option<(&str, &str)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = certificates(dir.path());
        let chain = CertificateDer::pem_file_iter(dir.path().join("server.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.path().join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::start(answers, user, Some(Arc::new(config)), ca, dir)
    }

    pub fn plain(answers: &[(&str, Answer)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start(answers, None, None, PathBuf::new(), dir)
    }

    fn start(
        answers: &[(&str, Answer)],
        user: Option<(&str, &str)>,
        tls: Option<Arc<rustls::ServerConfig>>,
        ca: PathBuf,
        dir: tempfile::TempDir,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let mut answers: Vec<_> =
            answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
        answers.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        let basic = |(user, password): (&str, &str)| {
            format!("Basic {}", cloister_image::base64::encode(format!("{user}:{password}").as_bytes()))
        };
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let site = Arc::new(Site { answers, authorization: user.map(basic), seen: seen.clone() });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (site, tls) = (site.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = match tls {
                        None => site.serve(stream),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            site.serve(rustls::StreamOwned::new(connection, stream))
                        }
                    };
                });
            }
        });
        Self { url, ca, seen, _dir: dir }
    }
}

impl Site {
    /// One request, one answer.
    fn serve(&self, stream: impl Read + Write + Close) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let given = headers.get("authorization").cloned();
        self.seen.lock().unwrap().push((target.clone(), given.clone()));
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (prefix, answer) = self
            .answers
            .iter()
            .find(|(prefix, _)| path.starts_with(prefix.as_str()))
            .map_or(("", Answer::Status(404)), |(prefix, answer)| (prefix, answer.clone()));
        let out = stream.get_mut();
        if self.authorization.is_some() && self.authorization != given {
            write!(
                out,
                "HTTP/1.1 401 No\r\nwww-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )?;
            return out.close();
        }
        let mut send = |kind: &str, bytes: &[u8]| {
            write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                bytes.len()
            )?;
            out.write_all(bytes)
        };
        match answer {
            Answer::Bytes(bytes) => send("application/octet-stream", &bytes)?,
            Answer::Typed(kind, bytes) => send(kind, &bytes)?,
            Answer::Redirect(to) => {
                write!(
                    out,
                    "HTTP/1.1 302 There\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )?;
            }
            Answer::Status(status) => {
                write!(out, "HTTP/1.1 {status} So\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
            }
            Answer::Silence => std::thread::sleep(Duration::from_secs(60)),
            Answer::Git(root) => {
                let inner = path.strip_prefix(prefix).unwrap();
                out.write_all(&backend(&root, &method, inner, query, &headers, &body))?;
            }
        }
        out.close()
    }
}

/// What git's CGI program answers.
fn backend(
    root: &Path,
    method: &str,
    path: &str,
    query: &str,
    headers: &HashMap<String, String>,
    body: &[u8],
) -> Vec<u8> {
    let header = |name: &str| headers.get(name).map_or("", String::as_str);
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", format!("/{}", path.trim_start_matches('/')))
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(body);
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(output[..end].to_vec()).unwrap();
    let mut status = "200 OK".to_owned();
    let mut lines = Vec::new();
    for line in head.lines() {
        match line.strip_prefix("Status: ") {
            Some(said) => said.clone_into(&mut status),
            None => lines.push(line.to_owned()),
        }
    }
    let body = &output[end + 4..];
    lines.push(format!("content-length: {}", body.len()));
    lines.push("connection: close".to_owned());
    [format!("HTTP/1.1 {status}\r\n{}\r\n\r\n", lines.join("\r\n")).as_bytes(), body].concat()
}

/// Says that nothing more comes.
trait Close {
    fn close(&mut self) -> std::io::Result<()>;
}

impl Close for TcpStream {
    fn close(&mut self) -> std::io::Result<()> {
        self.flush()
    }
}

impl Close for rustls::StreamOwned<rustls::ServerConnection, TcpStream> {
    fn close(&mut self) -> std::io::Result<()> {
        self.conn.send_close_notify();
        self.flush()
    }
}

/// A CA and a certificate for 127.0.0.1; returns the CA's path.
fn certificates(dir: &Path) -> PathBuf {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    for args in [
        format!("req -x509 -days 2 -subj /CN=test -keyout ca.key -out ca.pem {key}"),
        format!("req -subj /CN=127.0.0.1 -keyout server.key -out server.csr {key}"),
        "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out server.pem"
            .to_owned(),
    ] {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    dir.join("ca.pem")
}
