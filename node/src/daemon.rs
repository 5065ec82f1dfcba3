//! Puts the services together and runs them until told to stop.

use std::sync::Arc;

use anyhow::{Context, Result};
use cloister_image::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::api::diff::v1::diff_server::DiffServer;
use crate::api::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::blocking;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::differ::convert::Converter;
use crate::distribute::server;
use crate::distribute::tls::Tls;
use crate::import::{Importer, heal};
use crate::metrics::{self, Counters, Page, Pods};
use crate::mounts::Mounts;
use crate::mounts::host::HostMounts;
use crate::route::Either;
use crate::snapshots::state::State;
use crate::{differ, listen, snapshots, standby};

/// Serves until SIGTERM or SIGINT. Mounts and snapshots stay as they are: containers go on without the daemon.
pub async fn run(config: Config) -> Result<()> {
    // First of all, so that a second daemon touches nothing of the first's.
    let inherited = listen::inherited()?;
    let ours = inherited.is_none();
    let listener = match inherited {
        Some(listener) => listener,
        None => listen::unix(&config.address)?,
    };
    let root = config.root.clone();
    let skip = !config.fetch_always;
    let (state, host) = blocking::run(move || {
        let store = Store::open(&root)?;
        Ok((State::open(&root, store, skip)?, HostMounts::open(&root)?))
    })
    .await
    .context("cannot open the snapshots")?;
    let state = Arc::new(state);
    let counters = Arc::new(Counters::new()?);
    let containerd = Containerd::new(config.containerd.clone())?;
    let converter = Converter::new(state.store().clone(), containerd.clone(), counters.layers.clone());
    let importer = Importer::new(containerd.clone(), &config);
    let images = {
        let containerd = containerd.clone();
        async move {
            match (config.images, config.tls) {
                (Some(address), Some(tls)) => server::serve(address, Tls::new(tls), containerd).await,
                _ => std::future::pending().await,
            }
        }
    };
    let mounts = Arc::new(Mounts::new(state.clone(), host, containerd));
    let start = mounts.clone();
    blocking::run(move || start.cleanup()).await.context("cannot take down mounts nobody needs")?;

    let snapshotter = snapshots::service::Service::new(mounts, counters.clone());
    let differ = differ::service::Service::new(state.clone(), converter, counters.clone());
    let services = Either(SnapshotsServer::new(snapshotter), DiffServer::new(differ));
    let grpc = Server::builder().serve_with_incoming(services, UnixListenerStream::new(listener));
    let pods = Pods::open(config.pods, config.pod_labels);
    let page = Arc::new(Page { counters, state, pods });
    let metrics = async {
        match &config.metrics {
            Some(address) => metrics::serve(address, page).await,
            None => std::future::pending().await,
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    standby::lead(&config.address, &config.address)?;
    tracing::info!(address = %config.address.display(), root = %config.root.display(), "serving");
    tokio::select! {
        result = grpc => result.context("the server ended")?,
        result = metrics => result?,
        result = images => result?,
        () = heal::run(importer) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    if ours {
        let _ = std::fs::remove_file(&config.address);
    }
    Ok(())
}
