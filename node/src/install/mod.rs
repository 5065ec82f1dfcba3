//! Installing the runtime on a node, and taking it off again: level-triggered, so that whatever was interrupted is
//! continued by calling it once more. See `docs/install.md`.

mod config;
mod containerd;
mod edit;
mod files;
mod keep;
mod payload;
mod place;
mod proof;
mod restart;
mod settle;
mod shim;
mod turn;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::config::Record;
use self::payload::Versions;
use self::place::Place;
use self::restart::Restart;
use self::settle::{restart, settle};
use self::shim::ShimConfig;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::containerd::scope::Scope;
use crate::metrics::Address;

/// Where things are on the node.
#[derive(Debug, clap::Args)]
pub struct Node {
    /// Folder on the node for versions of the runtime
    #[arg(long, value_name = "DIR", default_value = "/opt/cloister")]
    to: PathBuf,
    /// containerd's main configuration file [default: of k3s or RKE2 if one is there, /etc/containerd/config.toml if not]
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// Our part of it, for containerd 2.x [default: conf.d/cloister.toml beside the main file]
    #[arg(long, value_name = "FILE")]
    drop_in: Option<PathBuf>,
    /// The main file is made again at each start of k3s or RKE2: never change it
    #[arg(long)]
    containerd_config_generated: bool,
    /// How containerd is restarted: systemd:UNIT[,UNIT…], the first that runs, or by-hand [default: by systemd]
    #[arg(long, value_name = "HOW")]
    restart: Option<Restart>,
    /// The shim's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/cloister/config.toml")]
    shim_config: PathBuf,
}

/// `install`.
#[derive(Debug, clap::Args)]
pub struct Install {
    /// Folder with the runtime: bin, share, … [default: the one above this program's]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// What the shim's configuration file is to say while no administrator has changed it [default: nothing]
    #[arg(long, value_name = "FILE")]
    shim_defaults: Option<PathBuf>,
    /// Stay: remove old versions, and label the node when a microVM has booted on it
    #[arg(long)]
    keep: bool,
    /// Where to serve /healthz and /readyz while staying: IP:PORT or unix:PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS", requires = "keep")]
    health_address: Option<Address>,
    #[command(flatten)]
    node: Node,
    #[command(flatten)]
    cluster: Cluster,
}

/// `uninstall`.
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    #[command(flatten)]
    node: Node,
    #[command(flatten)]
    cluster: Cluster,
}

impl Node {
    fn place(&self) -> Result<Place> {
        let found = match &self.containerd_config {
            Some(main) => Place::plain(main.clone()),
            None => Place::found(Path::new("/"))?,
        };
        Ok(Place {
            drop_in: self.drop_in.clone().unwrap_or(found.drop_in),
            generated: self.containerd_config_generated || found.generated,
            restart: self.restart.clone().unwrap_or(found.restart),
            ..found
        })
    }

    fn by_hand(&self) -> bool {
        self.restart == Some(Restart::ByHand)
    }

    fn record(&self) -> PathBuf {
        self.to.join("containerd.json")
    }

    fn shim_config(&self) -> ShimConfig {
        ShimConfig { path: self.shim_config.clone(), record: self.to.join("shim.json") }
    }

    fn containerd(&self, place: &Place, config: &Config) -> Result<Scope> {
        let socket = match &place.socket {
            Some(socket) if !config.containerd.exists() => socket.clone(),
            _ => config.containerd.clone(),
        };
        Ok(Scope::new(Containerd::new(socket)?))
    }
}

/// Puts this version of the runtime on the node and has containerd know it. Pods that run keep the version they started
/// with; containerd is restarted only when its configuration has to change.
pub async fn install(args: &Install, config: &Config) -> Result<()> {
    if args.keep {
        return keep::run(args, config).await;
    }
    let client = args.cluster.found().await?;
    let installed = settle(args, config, client.as_ref(), &CancellationToken::new()).await?;
    installed.context("told to stop")?.prune().await
}

/// Gives containerd its configuration back and removes every version. Pods of the runtime have to be gone.
pub async fn uninstall(args: &Uninstall, config: &Config) -> Result<()> {
    let node = &args.node;
    if let Some(client) = args.cluster.found().await?
        && let Err(reason) = keep::label(&client, &args.cluster.node()?, false).await
    {
        warn!("{reason:#}");
    }
    let versions = Versions::new(node.to.clone());
    versions.check_unused()?;
    let place = node.place()?;
    let cri = node.containerd(&place, config)?;
    let before = Record::load(&node.record())?;
    if before != Record::default() {
        before.undo()?;
        restart(&place.restart, &cri, |handler| handler.is_none()).await?;
    }
    node.shim_config().remove()?;
    versions.remove()?;
    info!("removed; containerd's configuration is as it was");
    Ok(())
}
