//! Staying after the installation: old versions go, and the cluster is told whether microVMs boot here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_pages::{Page, Pages};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Install, proof};
use crate::config::Config;
use crate::metrics::serve;

/// On nodes where a microVM booted: what pods of the runtime class are scheduled by.
const LABEL: &str = "cloister.dev/ready";
/// Time between two looks at the installation.
const ROUND: Duration = Duration::from_secs(30);
/// How long the API server may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Whether the installation is known to work.
#[derive(Debug, Default)]
struct Ready(AtomicBool);

impl Pages for Ready {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/healthz" => Some(Page::ok("ok\n")),
            "/readyz" if self.0.load(Ordering::Relaxed) => Some(Page::ok("ok\n")),
            "/readyz" => Some(Page::unavailable("no microVM has booted here yet")),
            _ => None,
        }
    }
}

/// Installs, and looks after it until SIGTERM or SIGINT. What is installed stays.
pub async fn run(args: &Install, config: &Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ready = Arc::new(Ready::default());
    let pages = async {
        match &args.health_address {
            Some(address) => serve(address, ready.clone()).await,
            None => std::future::pending().await,
        }
    };
    let stop = CancellationToken::new();
    let told = async {
        select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        // An administrator may take a day; a restart that has begun is waited for.
        if !args.node.by_hand() {
            std::future::pending::<()>().await;
        }
    };
    select! {
        result = work(args, config, &ready, &stop) => result?,
        result = pages => result?,
        () = told => {}
    }
    info!("stopped; what is installed stays");
    Ok(())
}

async fn work(args: &Install, config: &Config, ready: &Ready, stop: &CancellationToken) -> Result<()> {
    let node = args.cluster.node()?;
    let client = args.cluster.found().await?;
    let Some(installed) = super::settle(args, config, client.as_ref(), stop).await? else { return Ok(()) };
    let mut proven = false;
    loop {
        let look = async {
            // A folder too many keeps no microVM from booting.
            if let Err(reason) = installed.prune().await {
                warn!("{reason:#}");
            }
            installed.check().await?;
            if !proven {
                proof::boot(&installed.containerd, &installed.shim).await?;
            }
            anyhow::Ok(())
        };
        let found = select! {
            found = look => found,
            () = stop.cancelled() => return Ok(()),
        };
        proven = found.is_ok();
        if let Err(reason) = &found {
            error!("{reason:#}");
        }
        ready.0.store(proven, Ordering::Relaxed);
        if let Some(client) = &client
            && let Err(reason) = label(client, &node, proven).await
        {
            warn!("{reason:#}");
        }
        select! {
            () = sleep(ROUND) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Says of a node whether microVMs boot there.
pub async fn label(client: &Client, node: &str, ready: bool) -> Result<()> {
    let value = ready.then_some("true");
    let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL: value}}}));
    let nodes: Api<Node> = Api::all(client.clone());
    let written = timeout(ANSWER, nodes.patch_metadata(node, &PatchParams::default(), &patch)).await;
    written.context("no answer in time").and_then(|written| Ok(written?)).map(drop).with_context(|| {
        let does = if ready { "set" } else { "take" };
        format!("cannot {does} the label {LABEL} of node {node}")
    })
}
