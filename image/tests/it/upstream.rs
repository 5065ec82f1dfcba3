//! A real registry, and a front door before it that can be made to misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::*;

/// `user:secret`, as htpasswd's bcrypt has it.
const HTPASSWD: &str = "user:$2b$05$RBN4YnW7U7QXl0FLHXNyJeLcbi/rp8QaS603WoQg6mWQnHi65.g2a\n";

/// Debian's docker-registry on a loopback port.
pub struct Registry {
    process: Child,
    pub address: String,
    _dir: tempfile::TempDir,
    pub ca: Option<PathBuf>,
}

impl Registry {
    pub fn plain() -> Self {
        Self::start(false, false)
    }

    pub fn start(auth: bool, tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port nobody has right now; another process could take it first, so a start is tried more than once.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
                dir.path().display()
            );
            let ca = tls.then(|| certificates(dir.path()));
            if tls {
                config += &format!(
                    "  tls:\n    certificate: {0}/server.pem\n    key: {0}/server.key\n",
                    dir.path().display()
                );
            }
            if auth {
                std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
                config += &format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}/htpasswd\n",
                    dir.path().display()
                );
            }
            let path = dir.path().join("config.yml");
            std::fs::write(&path, config).unwrap();
            let mut process = Command::new("docker-registry")
                .args(["serve".as_ref(), path.as_os_str()])
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the Debian package docker-registry is installed");
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && process.try_wait().unwrap().is_none() {
                if TcpStream::connect(&address).is_ok() {
                    return Self { process, address, _dir: dir, ca };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = process.kill();
            process.wait().unwrap();
        }
        panic!("docker-registry does not start");
    }

    /// Uploads an image with skopeo, byte for byte.
    pub fn push(&self, files: &[(String, Vec<u8>)], name: &str) {
        let layout = tempfile::tempdir().unwrap();
        write_dir(layout.path(), files);
        let output = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ])
            .args(["--dest-creds", "user:secret"])
            .arg(format!("oci:{}", layout.path().display()))
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A CA and a certificate for 127.0.0.1; returns the CA's path.
fn certificates(dir: &Path) -> PathBuf {
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem"][..], &key].concat());
    openssl(
        &[&["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"][..], &key]
            .concat(),
    );
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "san",
        "-out",
        "server.pem",
    ]);
    dir.join("ca.pem")
}

/// A request that reached the front door.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What the front door does with a request.
pub enum Act {
    /// Pass it on.
    Forward,
    /// Pass it on and close after this many bytes of the body.
    Cut(usize),
    /// Pass it on without its `Range`.
    NoRange,
    /// Pass on the first bytes of the body and then say nothing more.
    Stall(usize),
    /// Answer: status line, headers, body.
    Answer(&'static str, Vec<(&'static str, String)>, Vec<u8>),
}

/// An HTTP proxy before a registry (or before nothing) that asks a closure what to do with each request.
pub struct Front {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Front {
    pub fn new(upstream: &str, decide: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (upstream, decide) = (upstream.to_owned(), Arc::new(decide));
        let (log, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (upstream, decide, log, stopped) =
                    (upstream.clone(), Arc::clone(&decide), Arc::clone(&log), Arc::clone(&stopped));
                // Ends with its connection; a broken one is what many tests want.
                std::thread::spawn(move || serve(&stream.unwrap(), &upstream, &*decide, &log, &stopped));
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    /// Requests seen so far whose path contains `part`.
    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(
    client: &TcpStream,
    upstream: &str,
    decide: &dyn Fn(&Seen) -> Act,
    log: &Mutex<Vec<Seen>>,
    stop: &AtomicBool,
) -> Option<()> {
    let mut reader = BufReader::new(client);
    let mut out = client;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut seen = Seen { method, path, headers, body: String::new() };
        let length: usize = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        seen.body = String::from_utf8_lossy(&body).into_owned();
        log.lock().unwrap().push(seen.clone());
        let (limit, stall, range) = match decide(&seen) {
            Act::Answer(status, headers, body) => {
                let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                out.write_all(format!("{head}\r\n").as_bytes()).ok()?;
                out.write_all(&body).ok()?;
                continue;
            }
            Act::Forward => (usize::MAX, false, true),
            Act::NoRange => (usize::MAX, false, false),
            Act::Cut(at) => (at, false, true),
            Act::Stall(at) => (at, true, true),
        };
        let mut server = TcpStream::connect(upstream).ok()?;
        // The registry makes URLs of it, which have to lead here again.
        let host = seen.header("host").unwrap_or(upstream);
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n", seen.method, seen.path);
        for name in ["accept", "range", "content-type", "content-length"]
            .into_iter()
            .filter(|name| range || *name != "range")
        {
            if let Some(value) = seen.header(name) {
                head += &format!("{name}: {value}\r\n");
            }
        }
        server.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        server.write_all(&body).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        let body_at = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let end = answer.len().min(body_at.saturating_add(limit));
        out.write_all(&answer[..end]).ok()?;
        while stall && end < answer.len() && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        return None;
    }
}

/// A counter that hands out 0, 1, 2, …
#[derive(Default)]
pub struct Turn(AtomicUsize);

impl Turn {
    pub fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
