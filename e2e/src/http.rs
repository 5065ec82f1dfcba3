//! One request of HTTP, for pages that programs serve.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};

/// The body of the page at `path`, which has to be there.
pub fn get(mut stream: impl Read + Write, path: &str) -> Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {answer}");
    Ok(body.to_owned())
}
