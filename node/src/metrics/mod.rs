//! What the daemon counts, and one page with that and the pods' own metrics.

mod ledger;
mod pods;
mod server;
mod text;

use std::sync::Arc;

use cloister_metrics::{Families, process};
use prometheus::{Counter, IntCounter, IntGaugeVec};

pub use pods::Pods;
pub use server::{Address, serve};

use crate::error::{Error, Result};
use crate::snapshots::record::Kind;
use crate::snapshots::state::State;

/// What is counted of layers, by whichever process converts them.
#[derive(Debug, Clone)]
pub struct Conversions {
    /// Layers converted.
    pub converted: IntCounter,
    /// Layers asked for that were in the store already.
    pub shared: IntCounter,
    /// Bytes of blobs converted.
    pub compressed_bytes: IntCounter,
    /// Bytes of tar converted.
    pub tar_bytes: IntCounter,
    /// Seconds spent converting, summed over layers.
    pub seconds: Counter,
}

impl Conversions {
    /// All zero, as a part of these families.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(families: &mut Families) -> cloister_metrics::Result<Self> {
        Ok(Self {
            converted: families.counter("layers_converted_total", "Layers converted to EROFS")?,
            shared: families
                .counter("layers_shared_total", "Layers taken from the image store without reading a blob")?,
            compressed_bytes: families
                .counter("layer_compressed_bytes_total", "Bytes of layer blobs converted")?,
            tar_bytes: families.counter("layer_tar_bytes_total", "Bytes of uncompressed layers converted")?,
            seconds: families.counter(
                "layer_conversion_seconds_total",
                "Time spent converting layers, summed over layers",
            )?,
        })
    }
}

/// Counters of this run of the daemon.
#[derive(Debug)]
pub struct Counters {
    families: Families,
    snapshots: IntGaugeVec,
    pods: IntGaugeVec,
    /// Of layers.
    pub layers: Conversions,
    /// Layers whose fetching containerd was spared.
    pub skipped: IntCounter,
    /// Layers refused, or given up.
    pub failed: IntCounter,
}

impl Counters {
    /// All zero.
    pub fn new() -> Result<Self> {
        Self::counted().map_err(|error| Error::Invalid(format!("metrics: {error}")))
    }

    fn counted() -> cloister_metrics::Result<Self> {
        let mut families = Families::new("cloister_node_");
        Ok(Self {
            layers: Conversions::new(&mut families)?,
            skipped: families
                .counter("layers_skipped_total", "Layers containerd neither fetched nor unpacked")?,
            failed: families.counter("layers_failed_total", "Layers refused or given up")?,
            snapshots: families.gauges("snapshots", "Snapshots by kind", &["kind"])?,
            pods: families.gauges(
                "pods",
                "Pods with metrics, and those of them that answered",
                &["state"],
            )?,
            families,
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
        let gauge = |family: &IntGaugeVec, label: &str, count: usize| {
            family.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let records = self.state.list(&[]);
        for kind in [Kind::View, Kind::Active, Kind::Committed] {
            let count = records.iter().filter(|record| record.kind == kind).count();
            gauge(&self.counters.snapshots, kind.name(), count);
        }
        let pods = self.pods.collect().await;
        gauge(&self.counters.pods, "found", pods.found);
        gauge(&self.counters.pods, "answered", pods.answered);
        let own = self.counters.families.page();
        let own = own.map_err(|error| Error::Invalid(format!("metrics: {error}")))?;
        Ok(own + &process::page() + &pods.page)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cloister_metrics::document;

    use super::*;

    #[test]
    fn every_family_is_documented() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        let rows = Counters::new().unwrap().families.rows().to_vec();
        assert_eq!(document::check(path, "cloister-node", &rows), Ok(()));
    }
}
