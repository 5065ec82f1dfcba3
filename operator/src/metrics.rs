//! What the operator counts. No label names an object: series do not grow with builds.

use cloister_crds::{Attempt, BuildReason};
use cloister_metrics::{Families, process};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::execute::Error;

/// Result and reason of an attempt that ended well.
const SUCCEEDED: [&str; 2] = ["succeeded", "ImageReady"];
/// Bounds of histograms over builds, in seconds: from a no-op to hours.
const BUILD_SECONDS: [f64; 12] = [1., 2., 5., 10., 20., 60., 120., 300., 600., 1800., 3600., 7200.];
/// Bounds of the time of one look at a build, in seconds.
const RECONCILE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1., 5., 30.];

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    families: Families,
    /// Looks at a build.
    pub reconciles: IntCounter,
    /// Looks that failed, by kind.
    pub errors: IntCounterVec,
    /// Time of a look.
    pub reconcile_seconds: Histogram,
    /// Ended attempts, by result and reason.
    pub builds: IntCounterVec,
    /// Time of the parts of attempts.
    pub build_seconds: HistogramVec,
    /// Builds that wait for their turn.
    pub waiting: IntGauge,
    /// Builds that run.
    pub active: IntGauge,
    /// Objects kept in memory, by kind.
    pub cached: IntGaugeVec,
    /// Watches that broke, by kind.
    pub watch_errors: IntCounterVec,
    /// Whether this replica acts.
    pub leads: IntGauge,
}

impl Metrics {
    /// All zero.
    ///
    /// # Errors
    /// When a name is not one, which a test would have seen.
    pub fn new() -> cloister_metrics::Result<Self> {
        let mut families = Families::new("cloister_operator_");
        let metrics = Self {
            reconciles: families.counter("reconcile_total", "Looks at an ImageBuild")?,
            errors: families.counters(
                "reconcile_errors_total",
                "Looks at an ImageBuild that failed, by kind",
                &["kind"],
            )?,
            reconcile_seconds: families.histogram(
                "reconcile_duration_seconds",
                "Time of one look at an ImageBuild",
                &RECONCILE_SECONDS,
            )?,
            builds: families.counters(
                "builds_total",
                "Attempts that have ended, by result and reason",
                &["result", "reason"],
            )?,
            build_seconds: families.histograms(
                "build_duration_seconds",
                "Time of the parts of attempts",
                &BUILD_SECONDS,
                &["phase"],
            )?,
            waiting: families.gauge("build_queue_length", "Builds that wait for their turn")?,
            active: families.gauge("builds_active", "Builds that run")?,
            cached: families.gauges("cached_objects", "Objects kept in memory, by kind", &["kind"])?,
            watch_errors: families.counters(
                "watch_errors_total",
                "Watches that broke and were started again, by kind",
                &["kind"],
            )?,
            leads: families.gauge("leader", "1 while this replica holds the lease")?,
            families,
        };
        // What can be counted is there from the beginning: a counter that appears with its first event has no rate.
        metrics.builds.with_label_values(&SUCCEEDED);
        for reason in BuildReason::failures() {
            metrics.builds.with_label_values(&["failed", reason.as_str()]);
        }
        for kind in Error::KINDS {
            metrics.errors.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    /// Counts an attempt that has ended.
    pub fn ended(&self, attempt: &Attempt) {
        let labels =
            attempt.failure.as_ref().map_or(SUCCEEDED, |failure| ["failed", failure.reason.as_str()]);
        self.builds.with_label_values(&labels).inc();
        for stage in &attempt.stages {
            // A node may have written any number.
            let Some(milliseconds) = stage.duration_milliseconds.filter(|took| *took >= 0) else { continue };
            let name = format!("{:?}", stage.name).to_lowercase();
            self.build_seconds.with_label_values(&[&name]).observe(milliseconds as f64 / 1000.0);
        }
        if let (Some(start), Some(end)) = (&attempt.start_time, &attempt.completion_time) {
            let took = end.0.duration_since(start.0).as_secs_f64().max(0.0);
            self.build_seconds.with_label_values(&["all"]).observe(took);
        }
    }

    /// The page in Prometheus' text format.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn page(&self) -> cloister_metrics::Result<String> {
        Ok(self.families.page()? + &process::page())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cloister_crds::{BuildReason, Failure, Stage, StageName};
    use cloister_metrics::document;

    use super::*;

    #[test]
    fn every_family_is_documented() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        let rows = Metrics::new().unwrap().families.rows().to_vec();
        assert_eq!(document::check(path, "cloister-operator", &rows), Ok(()));
    }

    #[test]
    fn an_ended_attempt_is_counted_by_reason_and_part() {
        let metrics = Metrics::new().unwrap();
        metrics.ended(&Attempt {
            failure: Some(Failure { reason: BuildReason::OutOfMemory, ..Failure::default() }),
            stages: vec![Stage {
                name: StageName::Solve,
                start_time: None,
                duration_milliseconds: Some(1500),
            }],
            ..Attempt::default()
        });
        let page = metrics.page().unwrap();
        for line in [
            r#"cloister_operator_builds_total{reason="OutOfMemory",result="failed"} 1"#,
            r#"cloister_operator_build_duration_seconds_sum{phase="solve"} 1.5"#,
            r#"cloister_operator_builds_total{reason="NodeLost",result="failed"} 0"#,
            r#"cloister_operator_reconcile_errors_total{kind="taken"} 0"#,
            "cloister_operator_leader 0",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
