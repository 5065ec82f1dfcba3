//! The builds of this node: a process of its own beside the daemon, because it talks to the API server and to guests.

mod archive;
mod attempt;
mod bases;
mod caches;
mod deliver;
mod drive;
mod events;
mod failure;
mod inputs;
mod leftovers;
mod log;
mod metrics;
mod place;
mod pod;
mod push;
mod renewal;
mod result;
mod solve;
mod ssh;
mod status;
mod steps;
mod trust;
mod uploads;
mod volume;
mod watch;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use cloister_image::Store;
use cloister_image::source::registry::Reach;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use self::archive::Logs;
use self::drive::Driver;
use self::events::Events;
use self::metrics::Metrics;
use self::uploads::Uploads;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::containerd::scope::Scope;
use crate::differ::convert::Converter;
use crate::import::Importer;
use crate::metrics::{Address, serve};
use crate::placed::Placement;
use crate::{blocking, error};

/// How often logs of builds that are gone are looked for.
const TIDY: Duration = Duration::from_secs(600);

/// Settings of `cloister-node builds`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do instead of driving builds
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    cluster: Cluster,
    /// Builds of this node that run at the same time; others wait in their machines
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Where this process serves its own /metrics: IP:PORT or unix:PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    builds_metrics_address: Option<Address>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the log of a build that ran on this node
    Log {
        /// `NAMESPACE/NAME` of the build
        build: String,
        /// Number of the attempt [default: the newest]
        attempt: Option<i64>,
    },
}

/// Runs until SIGTERM or SIGINT. Builds that run then end in their machines, where the next process builds again.
pub async fn run(args: Args, config: Config) -> Result<()> {
    if let Some(Command::Log { build, attempt }) = args.command {
        let (namespace, name) = build.split_once('/').context("a build is NAMESPACE/NAME")?;
        anyhow::ensure!(!build.contains("..") && !name.contains('/'), "{build:?} is not NAMESPACE/NAME");
        let logs = Logs::new(&config.root);
        let shown = logs.show(namespace, name, attempt, std::io::stdout().lock());
        return shown.with_context(|| format!("no log of build {build}"));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = drive(args, config);
    tokio::select! {
        result = work => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    Ok(())
}

async fn drive(args: Args, config: Config) -> Result<()> {
    let node = args.cluster.node()?;
    let client = args.cluster.client().await?;
    let folder = config.root.join("builds/work");
    let (made, root) = (folder.clone(), config.root.clone());
    let prepared = blocking::run(move || Ok((prepare(&made)?, Store::open(root)?))).await;
    let (_lock, store) = prepared.with_context(|| format!("cannot use {}", folder.display()))?;
    let version = client.apiserver_version().await.context("the API server does not answer")?;
    tracing::info!(version = version.git_version, node, "connected");
    let containerd = Containerd::new(config.containerd.clone())?;
    let importer = Importer::new(containerd.clone(), &config);
    let metrics = Metrics::new()?;
    let converter = Arc::new(Converter::new(store.clone(), containerd.clone(), metrics.layers.clone()));
    let (events, publish) = Events::new(client.clone(), &node);
    let driver = Arc::new(Driver {
        client: client.clone(),
        events,
        node: node.clone(),
        pods: config.pods.clone(),
        work: folder,
        store,
        converter,
        scope: Scope::new(containerd),
        importer: importer.clone(),
        logs: Logs::new(&config.root),
        uploads: Uploads::new(&config.root),
        places: Arc::new(Semaphore::new(args.parallel.max(1))),
        metrics: metrics.clone(),
        reach: if config.local_sources { Reach::Anywhere } else { Reach::BeyondHost },
    });
    let (logs, uploads, api) = (driver.logs.clone(), driver.uploads.clone(), client.clone());
    let tidy = async move {
        loop {
            logs.tidy(&api).await;
            uploads.tidy();
            tokio::time::sleep(TIDY).await;
        }
    };
    let port = config.images.map(|address| address.port());
    let renewal = renewal::run(driver.clone());
    let placement = Placement::new(client, importer, node, port);
    let pages = async {
        match &args.builds_metrics_address {
            Some(address) => serve(address, metrics).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = pages => Ok(served?),
        () = watch::run(driver) => anyhow::bail!("the watch of pods has ended"),
        result = placement.run() => result,
        () = tidy => Ok(()),
        () = renewal => anyhow::bail!("the watch of builds has ended"),
        () = publish => anyhow::bail!("the events have ended"),
    }
}

/// Makes the folder and empties it of what a killed process left. The lock says that no other process uses it: one that
/// ends may take a moment.
fn prepare(folder: &Path) -> error::Result<File> {
    use error::IoContext;
    let builds = folder.parent().unwrap_or(folder);
    DirBuilder::new().recursive(true).mode(0o700).create(builds).at("make", builds)?;
    let path = builds.join("lock");
    let lock = File::options().create(true).append(true).open(&path).at("open", &path)?;
    flock(&lock, FlockOperation::LockExclusive).at("lock", &path)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).at("empty", folder)?;
    }
    DirBuilder::new().mode(0o700).create(folder).at("make", folder)?;
    Ok(lock)
}
