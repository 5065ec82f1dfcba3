//! What the daemon counts, and one page with that and the pods' own metrics.

mod ledger;
mod pods;
mod server;
mod text;

use std::sync::Arc;

use prometheus::{Counter, IntCounter, IntGaugeVec, Opts, Registry, TextEncoder};

pub use pods::Pods;
pub use server::{Address, serve};

use crate::error::{Error, Result};
use crate::snapshots::record::Kind;
use crate::snapshots::state::State;

/// Counters of this run of the daemon.
#[derive(Debug)]
pub struct Counters {
    registry: Registry,
    snapshots: IntGaugeVec,
    /// Layers converted.
    pub converted: IntCounter,
    /// Layers asked for that were in the store already.
    pub shared: IntCounter,
    /// Layers whose fetching containerd was spared.
    pub skipped: IntCounter,
    /// Layers refused, or given up.
    pub failed: IntCounter,
    /// Bytes of blobs converted.
    pub compressed_bytes: IntCounter,
    /// Bytes of tar converted.
    pub tar_bytes: IntCounter,
    /// Seconds spent converting, summed over layers.
    pub seconds: Counter,
}

impl Counters {
    /// All zero.
    pub fn new() -> Result<Self> {
        Self::registered().map_err(|error| Error::Invalid(format!("metrics: {error}")))
    }

    fn registered() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(format!("cloister_node_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let seconds = Counter::new(
            "cloister_node_layer_conversion_seconds_total",
            "Time spent converting layers, summed over layers",
        )?;
        registry.register(Box::new(seconds.clone()))?;
        let snapshots =
            IntGaugeVec::new(Opts::new("cloister_node_snapshots", "Snapshots by kind"), &["kind"])?;
        registry.register(Box::new(snapshots.clone()))?;
        Ok(Self {
            converted: counter("layers_converted_total", "Layers converted to EROFS")?,
            shared: counter(
                "layers_shared_total",
                "Layers unpacked from the image store without reading a blob",
            )?,
            skipped: counter("layers_skipped_total", "Layers containerd neither fetched nor unpacked")?,
            failed: counter("layers_failed_total", "Layers refused or given up")?,
            compressed_bytes: counter("layer_compressed_bytes_total", "Bytes of layer blobs converted")?,
            tar_bytes: counter("layer_tar_bytes_total", "Bytes of uncompressed layers converted")?,
            seconds,
            snapshots,
            registry,
        })
    }
}

/// Everything one page is made from.
#[derive(Debug)]
pub struct Page {
    /// The daemon's counters.
    pub counters: Arc<Counters>,
    /// The snapshots, to be counted.
    pub state: Arc<State>,
    /// The pods.
    pub pods: Pods,
}

impl Page {
    /// The page in Prometheus' text format.
    pub async fn render(&self) -> Result<String> {
        let records = self.state.list(&[]);
        for kind in [Kind::View, Kind::Active, Kind::Committed] {
            let count = records.iter().filter(|record| record.kind == kind).count();
            self.counters
                .snapshots
                .with_label_values(&[kind.name()])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut page = TextEncoder::new()
            .encode_to_string(&self.counters.registry.gather())
            .map_err(|error| Error::Invalid(format!("metrics: {error}")))?;
        page.push_str(&self.pods.page().await);
        Ok(page)
    }
}
