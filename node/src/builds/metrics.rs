//! What is counted of builds; none of it names an object.

use std::sync::Arc;

use cloister_crds::BuildReason;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// The counters of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    running: IntGauge,
    ended: IntCounterVec,
}

/// A build that runs, as long as this value lives.
pub struct Running(IntGauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// When two have one name.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let running = IntGauge::new("cloister_node_builds_running", "Builds that run on this node")?;
        let opts = Opts::new("cloister_node_builds_total", "Builds that ended on this node");
        let ended = IntCounterVec::new(opts, &["reason"])?;
        registry.register(Box::new(running.clone()))?;
        registry.register(Box::new(ended.clone()))?;
        Ok(Arc::new(Self { registry, running, ended }))
    }

    /// A build begins to run.
    pub fn running(&self) -> Running {
        self.running.inc();
        Running(self.running.clone())
    }

    /// One has ended, for this reason if it has failed.
    pub fn ended(&self, reason: Option<BuildReason>) {
        self.ended.with_label_values(&[reason.map_or("Succeeded", BuildReason::as_str)]).inc();
    }

    /// All of them in Prometheus' text format.
    pub fn page(&self) -> Option<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).ok()
    }
}
