//! The installation itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::config::Record;
use super::containerd::Wanted;
use super::payload::Versions;
use super::restart::Restart;
use super::turn::Turns;
use super::{Install, Node};
use crate::config::Config;
use crate::containerd::runtime::Handler;
use crate::containerd::scope::Scope;
use crate::error::Error;
use crate::standby;

/// The handler that is installed.
const HANDLER: &str = "cloister";
/// The shim, below a version's folder.
const SHIM: &str = "bin/containerd-shim-cloister-v2";
/// What the shim's configuration file says when nothing is wanted of it.
const NOTHING: &str = "# What microVMs of this node are like; a key that is missing has its default.\n";
/// How long containerd may take until it serves the CRI after a restart.
const BACK: Duration = Duration::from_secs(60);
/// Time between two looks at it.
const LOOK: Duration = Duration::from_millis(200);

/// What is installed.
pub struct Installed {
    versions: Versions,
    /// The shim of new pods.
    pub shim: PathBuf,
    /// The containerd that knows of it.
    pub containerd: Scope,
}

impl Installed {
    /// Removes versions that nobody uses any more.
    pub async fn prune(&self) -> Result<()> {
        let versions = self.versions.clone();
        let gone = spawn_blocking(move || versions.prune()).await.context("nothing was removed")??;
        for gone in gone {
            info!(version = gone, "version removed: no pod uses it");
        }
        Ok(())
    }

    /// Fails when containerd starts pods of the handler with anything else.
    pub async fn check(&self) -> Result<()> {
        if !knows(&self.containerd, &self.shim).await? {
            bail!("containerd's configuration was changed: it does not know the handler {HANDLER} any more");
        }
        Ok(())
    }
}

/// Installs the runtime; `None` when told to stop before anything of containerd's was changed.
pub async fn settle(
    args: &Install,
    config: &Config,
    cluster: Option<&Client>,
    stop: &CancellationToken,
) -> Result<Option<Installed>> {
    let node = &args.node;
    let from = match &args.from {
        Some(from) => from.clone(),
        None => above_this_program()?,
    };
    if !from.join(SHIM).is_file() {
        bail!("{} has no {SHIM}: name the folder with the runtime by --from", from.display());
    }
    let place = node.place()?;
    let cri = node.containerd(&place, config)?;
    let version = cri.cri_version().await.context("containerd has to run while the runtime is installed")?;
    let text = match &args.shim_defaults {
        Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => NOTHING.to_owned(),
    };
    node.shim_config().write(&text)?;
    let versions = Versions::new(node.to.clone());
    let made = versions.clone();
    let name = spawn_blocking(move || made.publish(&from)).await.context("nothing was copied")??;
    info!(version = name, folder = %node.to.display(), "runtime in place");
    let shim = versions.current().join(SHIM);
    let wanted = Wanted {
        socket: config.address.clone(),
        differ: standby::differ(&config.address),
        shim: shim.clone(),
        platform: cloister_image::Platform::host().to_string(),
    };
    let before = Record::load(&node.record())?;
    let after = before.plan(&place, &wanted, version)?;
    if !after.is_made()? || !knows(&cri, &shim).await? {
        let good = |handler: Option<&Handler>| handler.is_some_and(|handler| handler.path == shim);
        let mut turns = Turns::new(cluster, &args.cluster.node()?);
        match turns.take(stop, change(node, &place.restart, &cri, &before, &after, good)).await {
            Some(changed) => changed?,
            None => return Ok(None),
        }
    }
    info!("containerd starts pods of the handler {HANDLER} with {}", shim.display());
    Ok(Some(Installed { versions, shim, containerd: cri }))
}

/// Writes containerd's configuration and restarts it; when it does not come back with it, everything is as before.
async fn change(
    node: &Node,
    how: &Restart,
    cri: &Scope,
    before: &Record,
    after: &Record,
    good: impl Fn(Option<&Handler>) -> bool,
) -> Result<()> {
    // On disk before the files are changed: whatever happens next, they can be given back.
    after.save(&node.record())?;
    after.make()?;
    for change in &after.changes {
        info!(file = %change.path.display(), "containerd's configuration changed");
    }
    let Err(reason) = restart(how, cri, good).await else { return Ok(()) };
    error!("{reason:#}; its configuration is given back");
    after.undo()?;
    before.make()?;
    before.save(&node.record())?;
    how.now().await?;
    answers(cri).await.context("containerd does not serve the CRI with its old configuration either")?;
    Err(reason.context("the runtime is not installed; containerd is as it was"))
}

/// Restarts containerd and waits until its handler is as wanted.
pub async fn restart(how: &Restart, cri: &Scope, good: impl Fn(Option<&Handler>) -> bool) -> Result<()> {
    how.now().await?;
    let wait = async {
        loop {
            // Until the old process is gone it still answers, and nothing does until the new one serves.
            match cri.cri_handlers().await {
                Ok(handlers) if good(handlers.get(HANDLER)) => return Ok(()),
                Err(refused @ Error::Precondition(_)) => return Err(refused.into()),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let patience = how.patience(BACK);
    tokio::time::timeout(patience, wait).await.unwrap_or_else(|_| {
        bail!("containerd was not there with its new configuration after {} s", patience.as_secs())
    })
}

/// Waits until containerd serves the CRI, whatever its handlers.
async fn answers(cri: &Scope) -> Result<()> {
    let wait = async {
        while cri.cri_handlers().await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(BACK, wait).await.with_context(|| format!("no answer within {} s", BACK.as_secs()))
}

/// Whether containerd starts pods of our handler with this shim.
async fn knows(cri: &Scope, shim: &Path) -> Result<bool> {
    Ok(cri.cri_handlers().await?.get(HANDLER).is_some_and(|handler| handler.path == shim))
}

/// `DIR` of `DIR/bin/cloister-node`.
fn above_this_program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let folder = program.parent().and_then(Path::parent);
    Ok(folder.with_context(|| format!("{} is in no folder", program.display()))?.to_owned())
}
