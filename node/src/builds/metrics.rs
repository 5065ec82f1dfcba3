//! What is counted of builds; none of it names an object.

use std::sync::Arc;

use cloister_crds::BuildReason;
use cloister_metrics::{Families, process};
use cloister_pages::{Page, Pages};
use prometheus::{IntCounterVec, IntGauge};

use crate::metrics::Conversions;

/// The counters of this process.
#[derive(Debug)]
pub struct Metrics {
    families: Families,
    running: IntGauge,
    ended: IntCounterVec,
    /// Of layers of images that builds begin from.
    pub layers: Conversions,
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
    pub fn new() -> cloister_metrics::Result<Arc<Self>> {
        let mut families = Families::new("cloister_node_");
        let metrics = Self {
            running: families.gauge("builds_running", "Builds that run on this node")?,
            ended: families.counters("builds_total", "Builds that ended on this node", &["reason"])?,
            layers: Conversions::new(&mut families)?,
            families,
        };
        // A counter that appears with its first event has no rate.
        metrics.ended.with_label_values(&["Succeeded"]);
        for reason in BuildReason::failures() {
            metrics.ended.with_label_values(&[reason.as_str()]);
        }
        Ok(Arc::new(metrics))
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
        let text = || self.families.page().map(|own| own + &process::page());
        (path == "/metrics").then(|| text().map_or_else(Page::failed, Page::ok))
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
        let rows = Metrics::new().unwrap().families.rows().to_vec();
        assert_eq!(document::check(path, "cloister-node builds", &rows), Ok(()));
    }

    #[tokio::test]
    async fn builds_are_counted_by_how_they_ended() {
        let metrics = Metrics::new().unwrap();
        let running = metrics.running();
        metrics.ended(None);
        metrics.ended(Some(BuildReason::StepFailed));
        let text = |page: Option<Page>| page.unwrap().body;
        let page = text(metrics.page("/metrics").await);
        for line in ["builds_running 1", "\"StepFailed\"} 1", "\"Succeeded\"} 1", "\"NodeLost\"} 0"] {
            assert!(page.contains(line), "{page}");
        }
        drop(running);
        assert!(text(metrics.page("/metrics").await).contains("builds_running 0"));
        assert!(metrics.page("/").await.is_none());
    }
}
