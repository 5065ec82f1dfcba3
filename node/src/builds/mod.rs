//! The builds of this node: a process of its own beside the daemon, because it talks to the API server and to guests.

mod cluster;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::cluster::Cluster;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::import::Importer;
use crate::placed::Placement;

/// Settings of `cloister-node builds`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
}

/// Runs until SIGTERM or SIGINT. Builds that run then go on in their machines, and are found again by the next process.
pub async fn run(args: Args, config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = args.cluster.node()?;
    let client = args.cluster.client().await?;
    let importer = Importer::new(Containerd::new(config.containerd.clone())?, &config);
    let work = async {
        let version = client.apiserver_version().await.context("the API server does not answer")?;
        tracing::info!(version = version.git_version, node, "connected");
        let port = config.images.map(|address| address.port());
        Placement::new(client.clone(), importer, node, port).run().await
    };
    tokio::select! {
        result = work => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    Ok(())
}
