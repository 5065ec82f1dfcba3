//! `logs`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_crds::{Attempt, ImageBuild};
use kube::ResourceExt;

use super::client::Cluster;
use super::follow::{self, Ended, Phase};
use super::stand;
use crate::args::kube::{KubeGlobal, KubeLogsArgs};
use crate::output;

/// How long the API server or the node may be away while a log is followed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the log of an attempt: its pod's, or what is kept of it.
pub async fn run(global: &KubeGlobal, args: &KubeLogsArgs) -> Result<u8> {
    let cluster = Cluster::connect(global).await?;
    let build = cluster.build(&args.name).await?;
    let attempt = stand::attempt(&build, args.attempt).with_context(|| match args.attempt {
        Some(number) => format!("imagebuild {} has no attempt {number}, or it is forgotten", args.name),
        None => format!("imagebuild {} has not been started yet", args.name),
    })?;
    let pods = cluster.pods();
    let ended = match attempt.pod.as_deref() {
        None => Ended::Gone,
        Some(pod) => {
            let phase = match args.follow {
                true => follow::started(&pods, pod).await?,
                false => Phase::Runs,
            };
            let patience = if args.follow { PATIENCE } else { Duration::ZERO };
            match phase {
                Phase::Missing => Ended::Gone,
                _ => match follow::follow(&pods, pod, args.follow, patience, &mut io::stdout()).await {
                    // The reader has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ended::Whole,
                    other => other.context("cannot write the log")?,
                },
            }
        }
    };
    match ended {
        Ended::Whole => Ok(0),
        Ended::Gone => kept(&build, attempt, "its pod is gone"),
        Ended::Unreachable(why) => kept(&build, attempt, &format!("its pod's log can't be read ({why})")),
    }
}

/// What the status has of the log, and where all of it is.
fn kept(build: &ImageBuild, attempt: &Attempt, why: &str) -> Result<u8> {
    let newest = stand::attempt(build, None).is_some_and(|newest| newest.number == attempt.number);
    let tail = build.status.as_ref().and_then(|status| status.log_tail.as_deref()).filter(|_| newest);
    if let Some(tail) = tail {
        output::print(&format!("{}\n", tail.trim_end_matches('\n')))?;
    }
    let (namespace, name) = (build.namespace().unwrap_or_default(), build.name_any());
    let shown = if tail.is_some() { "this is its end" } else { "nothing of it is in the status" };
    let mut said = format!("cloister: attempt {}: {why}; {shown}", attempt.number);
    if let Some(node) = &attempt.node {
        said.push_str(&format!(
            "; the whole log, on node {node}: cloister-node builds log {namespace}/{name} {}",
            attempt.number
        ));
    }
    // Standard error may be closed; there is nobody to tell then.
    let _ = writeln!(io::stderr(), "{said}");
    Ok(if tail.is_some() { 0 } else { 1 })
}
