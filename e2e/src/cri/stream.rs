//! Exec, attach and port-forward: the URL that a CRI server answers is upgraded to SPDY.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::spdy::{Connection, Stream};
use crate::cell::Cell;

/// How long a streaming server may take to answer a request.
const ANSWER: Duration = Duration::from_secs(10);

/// What a process wrote and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
    /// The exit code.
    pub code: i32,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wants {
    /// Bytes to the process.
    pub stdin: bool,
    /// One terminal instead of two outputs.
    pub tty: bool,
}

/// A process whose streams we hold.
pub struct Session {
    /// Keeps the connection open.
    _connection: Connection,
    error: Stream,
    stdin: Option<Stream>,
    stdout: Stream,
    stderr: Option<Stream>,
    resize: Option<Stream>,
    /// What was read of standard output so far.
    seen: Vec<u8>,
}

/// Connects to a streaming URL from inside the lab's network and asks for SPDY with one of `protocols`.
fn upgrade(cell: &Cell, url: &str, protocol: &str) -> Result<Connection> {
    let rest = url.strip_prefix("http://").with_context(|| format!("not a plain URL: {url}"))?;
    let (host, path) = rest.split_once('/').context("a URL without a path")?;
    let mut socket = cell.inside(|| TcpStream::connect(host))??;
    socket.set_read_timeout(Some(ANSWER))?;
    write!(
        socket,
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
    )?;
    // The server says nothing after its answer before it has seen our streams, so nothing is read too far.
    let mut answer = BufReader::with_capacity(1, &socket);
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        line.clear();
    }
    if !status.starts_with("HTTP/1.1 101") {
        bail!("{url}: {}", status.trim());
    }
    socket.set_read_timeout(None)?;
    Ok(Connection::new(socket)?)
}

impl Session {
    /// Opens the URL of an exec or attach.
    pub fn open(cell: &Cell, url: &str, wants: Wants) -> Result<Session> {
        let connection = upgrade(cell, url, "v4.channel.k8s.io")?;
        let stream = |kind| connection.open(&[("streamtype", kind)]);
        let error = stream("error")?;
        let stdin = wants.stdin.then(|| stream("stdin")).transpose()?;
        let stdout = stream("stdout")?;
        let stderr = (!wants.tty).then(|| stream("stderr")).transpose()?;
        let resize = wants.tty.then(|| stream("resize")).transpose()?;
        Ok(Session { error, stdin, stdout, stderr, resize, seen: Vec::new(), _connection: connection })
    }

    /// Sends bytes to standard input.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.stdin.as_ref().context("a session without stdin")?.write(bytes)?)
    }

    /// Closes standard input; output goes on.
    pub fn close_stdin(&self) -> Result<()> {
        Ok(self.stdin.as_ref().context("a session without stdin")?.finish()?)
    }

    /// Tells the terminal its size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        Ok(self.resize.as_ref().context("a session without terminal")?.write(size.as_bytes())?)
    }

    /// Reads standard output until `words` have been seen; gives everything so far.
    pub fn read_until(&mut self, words: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = String::from_utf8_lossy(&self.seen).into_owned();
            if text.contains(words) {
                return Ok(text);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.incoming.recv_timeout(left) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(RecvTimeoutError::Timeout) => bail!("no {words:?} within {patience:?} in {text:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the output ended without {words:?}: {text:?}"),
            }
        }
    }

    /// Reads all streams to their end.
    pub fn wait(mut self, patience: Duration) -> Result<Output> {
        let deadline = Instant::now() + patience;
        let mut output = Output { stdout: std::mem::take(&mut self.seen), ..Output::default() };
        // Standard error is drained beside standard output: the channels have no bound, so neither waits.
        drain(&self.stdout, &mut output.stdout, deadline).context("standard output")?;
        if let Some(stderr) = &self.stderr {
            drain(stderr, &mut output.stderr, deadline).context("standard error")?;
        }
        let mut error = Vec::new();
        drain(&self.error, &mut error, deadline).context("exit status")?;
        output.code = exit_code(&error)?;
        Ok(output)
    }
}

fn drain(stream: &Stream, into: &mut Vec<u8>, deadline: Instant) -> Result<()> {
    loop {
        match stream.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => into.extend(bytes),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!("still open after {} bytes", into.len()),
        }
    }
}

/// The exit code in a `v4.channel.k8s.io` status.
fn exit_code(status: &[u8]) -> Result<i32> {
    if status.is_empty() {
        return Ok(0);
    }
    let text = String::from_utf8_lossy(status);
    let status: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone().into_owned())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse().ok())
        .ok_or_else(|| anyhow!("the process failed: {}", status["message"].as_str().unwrap_or(&text)))
}

/// One forwarded connection.
pub struct Forwarded {
    _connection: Connection,
    error: Stream,
    data: Stream,
}

impl Forwarded {
    /// Opens one connection to `port` in the pod.
    pub fn open(cell: &Cell, url: &str, port: u16) -> Result<Forwarded> {
        let connection = upgrade(cell, url, "portforward.k8s.io")?;
        let port = port.to_string();
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        let error = connection.open(&headers("error"))?;
        error.finish()?;
        let data = connection.open(&headers("data"))?;
        Ok(Forwarded { error, data, _connection: connection })
    }

    /// Sends a request, closes our half and reads the answer to its end.
    pub fn exchange(self, request: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let deadline = Instant::now() + patience;
        self.data.write(request)?;
        self.data.finish()?;
        let mut answer = Vec::new();
        drain(&self.data, &mut answer, deadline)?;
        let mut error = Vec::new();
        drain(&self.error, &mut error, deadline)?;
        if !error.is_empty() {
            bail!("{}", String::from_utf8_lossy(&error));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn exit_codes_are_read_from_the_status() {
        let failure = br#"{"metadata":{},"status":"Failure","message":"exit 7","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failure).unwrap(), 7);
        assert_eq!(exit_code(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        assert!(exit_code(br#"{"status":"Failure","message":"no such program"}"#).is_err());
    }
}
