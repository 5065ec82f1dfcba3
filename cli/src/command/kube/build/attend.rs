//! What is done while an attempt runs: its pod gets the folder, and its log is shown.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::follow::{self, Ended, Phase};
use super::super::pack::Packed;
use super::super::upload;
use crate::output;

/// How long the node may be away while the log is followed; the build goes on all the same.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a pod that is to come is looked for.
const COMES: Duration = Duration::from_millis(100);
/// How long the rest of a log may take when its attempt has ended.
const REST: Duration = Duration::from_secs(5);

/// What happens meanwhile.
pub enum Sent {
    /// The pod has the folder, or somebody else sends it.
    Folder,
    /// It did not take it, for this reason; the attempt will say what it makes of that.
    Cut(String),
}

/// One attempt that is attended; dropping it ends that.
pub struct Attendance {
    attempt: i64,
    sent: mpsc::Receiver<Result<(), String>>,
    cut: Option<String>,
    log: Option<JoinHandle<()>>,
    sending: Option<JoinHandle<()>>,
}

impl Attendance {
    /// None yet.
    pub fn none() -> Self {
        Self { attempt: 0, sent: mpsc::channel(1).1, cut: None, log: None, sending: None }
    }

    /// Begins, with the folder if this command is to send it.
    pub fn of(attempt: i64, pods: Api<Pod>, pod: String, folder: Option<Arc<Packed>>) -> Self {
        let (done, sent) = mpsc::channel(1);
        let sending = tokio::spawn({
            let (pods, pod) = (pods.clone(), pod.clone());
            async move {
                let result = match folder {
                    Some(folder) => send(&pods, &pod, &folder).await,
                    None => Ok(()),
                };
                let _ = done.send(result.map_err(|error| output::one_line(&error))).await;
            }
        });
        let log = tokio::spawn(async move { show(&pods, &pod).await });
        Self { attempt, sent, cut: None, log: Some(log), sending: Some(sending) }
    }

    /// Whether it is this attempt that is attended.
    pub fn is_of(&self, attempt: i64) -> bool {
        self.attempt == attempt
    }

    /// The next that happens. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Sent {
        match self.sent.recv().await {
            Some(Ok(())) => Sent::Folder,
            Some(Err(why)) => {
                self.cut = Some(why.clone());
                Sent::Cut(why)
            }
            None => pending().await,
        }
    }

    /// The attempt has ended: the rest of its log is shown. Why the folder was not sent, if it was not.
    pub async fn finish(&mut self) -> Option<String> {
        if let Some(mut log) = self.log.take()
            && tokio::time::timeout(REST, &mut log).await.is_err()
        {
            log.abort();
        }
        // Its pod has ended, or is about to: then the sending ends, too.
        if let Ok(Some(Err(why))) = tokio::time::timeout(REST, self.sent.recv()).await {
            self.cut = Some(why);
        }
        self.cut.take()
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if let Some(task) = &self.log {
            task.abort();
        }
        if let Some(task) = &self.sending {
            task.abort();
        }
    }
}

async fn send(pods: &Api<Pod>, pod: &str, folder: &Packed) -> Result<()> {
    let file = folder.file.as_ref().context("there is no archive")?.try_clone()?;
    ensure!(started(pods, pod).await? == Phase::Runs, "pod {pod} has ended before it took the folder");
    let took = upload::send(pods, pod, Arc::new(file)).await?;
    super::say(&format!("sent {} in {:.1} s", output::bytes(folder.size), took.as_secs_f64()));
    Ok(())
}

/// Waits until an attempt's pod has started. An attempt names its pod before that is made, so that a missing one is to
/// come; whoever attends stops waiting when the attempt has ended.
async fn started(pods: &Api<Pod>, pod: &str) -> Result<Phase> {
    loop {
        match follow::started(pods, pod).await? {
            Phase::Missing => tokio::time::sleep(COMES).await,
            phase => return Ok(phase),
        }
    }
}

/// A log that can't be shown does not change the result.
async fn show(pods: &Api<Pod>, pod: &str) {
    let why = match started(pods, pod).await {
        Ok(_) => match follow::follow(pods, pod, true, PATIENCE, &mut io::stderr()).await {
            Ok(Ended::Unreachable(why)) => why,
            // Nobody reads standard error any more, or there is nothing more to read.
            Ok(Ended::Whole | Ended::Gone) | Err(_) => return,
        },
        Err(error) => output::one_line(&error),
    };
    super::say(&format!("the log of pod {pod} can't be read: {why}"));
}
