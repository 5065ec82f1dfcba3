//! What the operator counts. No label names an object: series do not grow with builds.

use cloister_crds::Attempt;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Bounds of histograms over builds, in seconds: from a no-op to hours.
const BUILD_SECONDS: [f64; 12] = [1., 2., 5., 10., 20., 60., 120., 300., 600., 1800., 3600., 7200.];
/// Bounds of the time of one look at a build, in seconds.
const RECONCILE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1., 5., 30.];

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
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
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("cloister_operator".to_owned()), None)?;
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let histogram =
            |name: &str, help: &str, bounds: &[f64]| HistogramOpts::new(name, help).buckets(bounds.to_vec());
        Ok(Self {
            reconciles: register!(IntCounter::new("reconcile_total", "Looks at an ImageBuild")),
            errors: register!(IntCounterVec::new(
                Opts::new("reconcile_errors_total", "Looks at an ImageBuild that failed, by kind"),
                &["kind"]
            )),
            reconcile_seconds: register!(Histogram::with_opts(histogram(
                "reconcile_duration_seconds",
                "Time of one look at an ImageBuild",
                &RECONCILE_SECONDS
            ))),
            builds: register!(IntCounterVec::new(
                Opts::new("builds_total", "Attempts that have ended, by result and reason"),
                &["result", "reason"]
            )),
            build_seconds: register!(HistogramVec::new(
                histogram("build_duration_seconds", "Time of the parts of attempts", &BUILD_SECONDS),
                &["phase"]
            )),
            waiting: register!(IntGauge::new("build_queue_length", "Builds that wait for their turn")),
            active: register!(IntGauge::new("builds_active", "Builds that run")),
            cached: register!(IntGaugeVec::new(
                Opts::new("cached_objects", "Objects kept in memory, by kind"),
                &["kind"]
            )),
            watch_errors: register!(IntCounterVec::new(
                Opts::new("watch_errors_total", "Watches that broke and were started again, by kind"),
                &["kind"]
            )),
            leads: register!(IntGauge::new("leader", "1 while this replica holds the lease")),
            registry,
        })
    }

    /// Counts an attempt that has ended.
    pub fn ended(&self, attempt: &Attempt) {
        let (result, reason) = match &attempt.failure {
            Some(failure) => ("failed", failure.reason.as_str()),
            None => ("succeeded", "ImageReady"),
        };
        self.builds.with_label_values(&[result, reason]).inc();
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
    pub fn page(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use cloister_crds::{BuildReason, Failure, Stage, StageName};

    use super::*;

    /// A row of `docs/metrics.md` for each family, and no other with the prefix.
    #[test]
    fn every_series_is_documented() {
        let metrics = Metrics::new().unwrap();
        metrics.ended(&Attempt::default());
        metrics.build_seconds.with_label_values(&["all"]).observe(1.0);
        for by_kind in [&metrics.errors, &metrics.watch_errors] {
            by_kind.with_label_values(&["x"]).inc();
        }
        metrics.cached.with_label_values(&["x"]).set(1);
        let families = metrics.registry.gather();
        let rows = families.iter().map(|family| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels = family.get_metric()[0].get_label().iter().map(|label| format!("`{}`", label.name()));
            let labels: Vec<String> = labels.collect();
            format!("| `{}` | {kind} | {} | {} |", family.name(), labels.join(", "), family.help())
        });
        let document = include_str!("../../docs/metrics.md");
        let documented = document.lines().filter(|line| line.starts_with("| `cloister_operator_"));
        assert_eq!(documented.collect::<Vec<_>>(), rows.collect::<Vec<_>>());
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
            "cloister_operator_leader 0",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
