//! SSH agents with one key each: OpenSSH's own, which keep the key in memory only and end with the build.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_build::client::SshAgents;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long an agent may take to listen, and to take a key.
const START: Duration = Duration::from_secs(10);
/// How often its socket is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// Agents that run as long as this value lives.
#[derive(Debug, Default)]
pub struct Agents {
    /// Their sockets.
    pub offered: SshAgents,
    _running: Vec<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Agents {
    /// An agent for each key, by id; their sockets are in a private folder below `work`.
    ///
    /// # Errors
    /// When OpenSSH is not there, or a key is none or has a passphrase.
    pub async fn start(keys: Vec<(String, Vec<u8>)>, work: &Path) -> Result<Self> {
        let mut all = Self::default();
        if keys.is_empty() {
            return Ok(all);
        }
        let folder = tempfile::Builder::new().prefix("ssh-").tempdir_in(work)?;
        for (number, (id, key)) in keys.into_iter().enumerate() {
            let socket = folder.path().join(number.to_string());
            let agent = Command::new("ssh-agent")
                .args(["-D", "-a"])
                .arg(&socket)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .context("cannot start ssh-agent")?;
            all._running.push(agent);
            let add = add(&socket, &key);
            tokio::time::timeout(START, add).await.context("ssh-agent does not answer")??;
            all.offered = all.offered.with(&id, socket);
        }
        all._folder = Some(folder);
        Ok(all)
    }
}

async fn add(socket: &Path, key: &[u8]) -> Result<()> {
    while !socket.exists() {
        tokio::time::sleep(LOOK).await;
    }
    let mut add = Command::new("ssh-add")
        .args(["-q", "-"])
        .env("SSH_AUTH_SOCK", socket)
        // Nobody is there to be asked for a passphrase.
        .env("SSH_ASKPASS_REQUIRE", "never")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start ssh-add")?;
    if let Some(mut stdin) = add.stdin.take() {
        stdin.write_all(key).await?;
        if !key.ends_with(b"\n") {
            stdin.write_all(b"\n").await?;
        }
    }
    ensure!(add.wait().await?.success(), "not a private key, or one with a passphrase");
    Ok(())
}
