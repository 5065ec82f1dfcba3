//! The log of a build's pod, followed over connections that break: every line once.

mod lines;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{AsyncRead, AsyncReadExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Error};

use self::lines::Lines;
use super::client::{ANSWER, Pause, is_missing, may_pass, plain};

/// Bytes that are read at a time.
const CHUNK: usize = 16 << 10;
/// How often a pod that has not started is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How following has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The log is at its end.
    Whole,
    /// There is no such pod (any more).
    Gone,
    /// The log can't be had, for this reason.
    Unreachable(String),
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has not started.
    Waits,
    /// Its container runs.
    Runs,
    /// Its container has ended.
    Over,
    /// There is none.
    Missing,
}

/// Looks at a pod.
pub async fn phase(pods: &Api<Pod>, name: &str) -> kube::Result<Phase> {
    let found = match tokio::time::timeout(ANSWER, pods.get_opt(name)).await {
        Ok(found) => found?,
        Err(_) => return Err(Error::Service("no answer in time".into())),
    };
    let phase = found.and_then(|pod| Some(pod.status?.phase.unwrap_or_default()));
    Ok(match phase.as_deref() {
        None => Phase::Missing,
        Some("Running") => Phase::Runs,
        Some("Succeeded" | "Failed") => Phase::Over,
        Some(_) => Phase::Waits,
    })
}

/// Waits until a pod has started, or is gone.
pub async fn started(pods: &Api<Pod>, name: &str) -> Result<Phase> {
    loop {
        match phase(pods, name).await {
            Ok(Phase::Waits) => {}
            Ok(phase) => return Ok(phase),
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(plain(error)),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes the log of a pod that has started to `out`; with `follow` until its container ends. What breaks is tried again,
/// for as long as `patience` when it can't be opened.
///
/// # Errors
/// When `out` fails.
pub async fn follow(
    pods: &Api<Pod>,
    name: &str,
    follow: bool,
    patience: Duration,
    out: &mut (impl Write + ?Sized),
) -> io::Result<Ended> {
    let mut lines = Lines::default();
    let mut pause = Pause::new();
    let mut heard = Instant::now();
    loop {
        let params =
            LogParams { follow, timestamps: true, since_time: lines.since(), ..LogParams::default() };
        let opened = tokio::time::timeout(ANSWER, pods.log_stream(name, &params)).await;
        let mut why = "it does not answer".to_owned();
        match opened {
            Ok(Ok(stream)) => {
                lines.begin();
                let clean = copy(stream, &mut lines, &mut pause, out).await?;
                heard = Instant::now();
                // A log that ends while its container runs was cut, by a rotation or a restart of what carries it.
                if clean && (!follow || !matches!(phase(pods, name).await, Ok(Phase::Runs) | Err(_))) {
                    return Ok(Ended::Whole);
                }
            }
            Ok(Err(error)) if is_missing(&error) && matches!(phase(pods, name).await, Ok(Phase::Missing)) => {
                return Ok(Ended::Gone);
            }
            Ok(Err(error)) => {
                // 400: the container is just about to start.
                let passes = may_pass(&error) || matches!(&error, Error::Api(status) if status.code == 400);
                why = crate::output::one_line(&plain(error));
                if !passes {
                    return Ok(Ended::Unreachable(why));
                }
            }
            Err(_) => {}
        }
        if heard.elapsed() >= patience {
            return Ok(Ended::Unreachable(why));
        }
        pause.wait().await;
    }
}

/// Copies what comes; whether it came to its end.
async fn copy(
    stream: impl AsyncRead,
    lines: &mut Lines,
    pause: &mut Pause,
    out: &mut (impl Write + ?Sized),
) -> io::Result<bool> {
    let mut stream = std::pin::pin!(stream);
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk).await {
            Ok(0) => return Ok(true),
            Ok(length) => {
                lines.feed(chunk.get(..length).unwrap_or_default(), out)?;
                out.flush()?;
                *pause = Pause::new();
            }
            Err(_) => return Ok(false),
        }
    }
}
