//! Sends a packed folder to the pod of an attempt, through its standard input.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::AsyncWriteExt;

use super::client::{ANSWER, Pause, plain};
use super::follow::{self, Phase};

/// How long the pod's side may take to let us in.
const OPEN: Duration = Duration::from_secs(60);
/// How long it may take no byte: its microVM boots and its driver prepares meanwhile.
const STALL: Duration = Duration::from_secs(300);
/// How long it may take to say that it has everything.
const DONE: Duration = Duration::from_secs(60);
/// Bytes that are sent at a time.
const CHUNK: usize = 64 << 10;

/// Sends the file from its beginning; returns how long that took.
pub async fn send(pods: &Api<Pod>, pod: &str, file: Arc<File>) -> Result<Duration> {
    let begun = Instant::now();
    let mut attached = open(pods, pod).await.with_context(|| format!("cannot attach to pod {pod}"))?;
    let mut stdin = attached.stdin().context("the pod takes no standard input")?;
    let cut = || format!("the connection to pod {pod} broke before it had the folder");
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    loop {
        let (back, chunk) = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk);
            read.map(|_| (file, chunk))
        })
        .await?
        .context("cannot read the archive")?;
        file = back;
        if chunk.is_empty() {
            break;
        }
        match tokio::time::timeout(STALL, stdin.write_all(&chunk)).await {
            Ok(written) => written.with_context(cut)?,
            Err(_) => bail!("pod {pod} has taken nothing of the folder for {} s", STALL.as_secs()),
        }
    }
    stdin.shutdown().await.with_context(cut)?;
    drop(stdin);
    match tokio::time::timeout(STALL + DONE, attached.join()).await {
        Ok(ended) => ended.map_err(anyhow::Error::new).with_context(cut)?,
        Err(_) => bail!("pod {pod} does not say that it has the folder"),
    }
    Ok(begun.elapsed())
}

/// Attaches; a container may need a moment to be there after its pod is called running.
async fn open(pods: &Api<Pod>, pod: &str) -> Result<AttachedProcess> {
    let begun = Instant::now();
    let mut pause = Pause::new();
    let params = AttachParams::default().stdin(true).stdout(false).stderr(false).max_stdin_buf_size(CHUNK);
    loop {
        let error = match tokio::time::timeout(ANSWER, pods.attach(pod, &params)).await {
            Ok(Ok(attached)) => return Ok(attached),
            Ok(Err(error)) => plain(error),
            Err(_) => anyhow::anyhow!("no answer within {} s", ANSWER.as_secs()),
        };
        let over = !matches!(follow::phase(pods, pod).await, Ok(Phase::Waits | Phase::Runs) | Err(_));
        if over || begun.elapsed() > OPEN {
            return Err(error);
        }
        pause.wait().await;
    }
}
