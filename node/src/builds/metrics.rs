//! What is counted of builds; none of it names an object.

use std::sync::Arc;

use cloister_crds::BuildReason;
use cloister_pages::{Page, Pages};
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
}

impl Pages for Metrics {
    async fn page(&self, path: &str) -> Option<Page> {
        let text = || TextEncoder::new().encode_to_string(&self.registry.gather());
        (path == "/metrics").then(|| text().map_or_else(Page::failed, Page::ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of `docs/metrics.md` for each family, and no other with the prefix.
    #[test]
    fn every_series_is_documented() {
        let metrics = Metrics::new().unwrap();
        metrics.ended(None);
        let families = metrics.registry.gather();
        let rows = families.iter().map(|family| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels = family.get_metric()[0].get_label().iter().map(|label| format!("`{}`", label.name()));
            let labels: Vec<String> = labels.collect();
            format!("| `{}` | {kind} | {} | {} |", family.name(), labels.join(", "), family.help())
        });
        let document = include_str!("../../../docs/metrics.md");
        let documented = document.lines().filter(|line| line.starts_with("| `cloister_node_builds_"));
        assert_eq!(documented.collect::<Vec<_>>(), rows.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn builds_are_counted_by_how_they_ended() {
        let metrics = Metrics::new().unwrap();
        let running = metrics.running();
        metrics.ended(None);
        metrics.ended(Some(BuildReason::StepFailed));
        let text = |page: Option<Page>| format!("{:?}", page.unwrap());
        let page = text(metrics.page("/metrics").await);
        for line in ["builds_running 1", "StepFailed", "Succeeded"] {
            assert!(page.contains(line), "{page}");
        }
        drop(running);
        assert!(text(metrics.page("/metrics").await).contains("builds_running 0"));
        assert!(metrics.page("/").await.is_none());
    }
}
