//! What a program counts: families of series whose names begin the same, the page with them, and their rows in
//! `docs/metrics.md`.

pub mod document;
pub mod process;

use prometheus::core::{Atomic, Collector, GenericCounter, GenericCounterVec, GenericGauge, GenericGaugeVec};
use prometheus::{Histogram, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

pub use prometheus::Result;

use crate::document::Row;

/// Families of one process.
#[derive(Debug)]
pub struct Families {
    prefix: &'static str,
    registry: Registry,
    rows: Vec<Row>,
}

/// Every method that adds a family fails when its name is taken, or is no name.
impl Families {
    /// None yet; the names of all will begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, registry: Registry::new(), rows: Vec::new() }
    }

    /// Adds a counter.
    ///
    /// # Errors
    /// See above.
    pub fn counter<P: Atomic + 'static>(&mut self, name: &str, help: &str) -> Result<GenericCounter<P>> {
        let counter = GenericCounter::with_opts(self.named(name, help));
        self.add(counter)
    }

    /// Adds counters that differ in labels.
    ///
    /// # Errors
    /// See above.
    pub fn counters<P: Atomic + 'static>(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GenericCounterVec<P>> {
        let counters = GenericCounterVec::new(self.named(name, help), labels);
        self.add(counters)
    }

    /// Adds a gauge.
    ///
    /// # Errors
    /// See above.
    pub fn gauge<P: Atomic + 'static>(&mut self, name: &str, help: &str) -> Result<GenericGauge<P>> {
        let gauge = GenericGauge::with_opts(self.named(name, help));
        self.add(gauge)
    }

    /// Adds gauges that differ in labels.
    ///
    /// # Errors
    /// See above.
    pub fn gauges<P: Atomic + 'static>(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GenericGaugeVec<P>> {
        let gauges = GenericGaugeVec::new(self.named(name, help), labels);
        self.add(gauges)
    }

    /// Adds a histogram; `bounds` are the upper ones of its buckets.
    ///
    /// # Errors
    /// See above.
    pub fn histogram(&mut self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::from(self.named(name, help)).buckets(bounds.to_vec());
        self.add(Histogram::with_opts(opts))
    }

    /// Adds histograms that differ in labels.
    ///
    /// # Errors
    /// See above.
    pub fn histograms(
        &mut self,
        name: &str,
        help: &str,
        bounds: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec> {
        let opts = HistogramOpts::from(self.named(name, help)).buckets(bounds.to_vec());
        self.add(HistogramVec::new(opts, labels))
    }

    fn named(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}{name}", self.prefix), help)
    }

    fn add<C: Collector + Clone + 'static>(&mut self, family: Result<C>) -> Result<C> {
        let family = family?;
        self.registry.register(Box::new(family.clone()))?;
        // A family without series has a type all the same.
        let kinds = family.collect().into_iter().map(|all| format!("{:?}", all.get_field_type()));
        let rows = family.desc().into_iter().zip(kinds).map(|(desc, kind)| Row {
            name: desc.fq_name.clone(),
            kind: kind.to_lowercase(),
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        });
        self.rows.extend(rows);
        Ok(family)
    }

    /// What a document says of them, in the order in which they were added.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The page in Prometheus' text format.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn page(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Counter, IntCounterVec, IntGauge};

    use super::*;

    #[test]
    fn families_are_on_the_page_and_in_rows() {
        let mut families = Families::new("cloister_test_");
        let seconds: Counter = families.counter("work_seconds_total", "Time of work").unwrap();
        let ends: IntCounterVec = families.counters("ends_total", "Ends", &["reason"]).unwrap();
        let there: IntGauge = families.gauge("things", "Things").unwrap();
        let took = families.histograms("call_duration_seconds", "Calls", &[0.1, 1.0], &["call"]).unwrap();
        let before: Vec<Row> = families.rows().to_vec();
        seconds.inc_by(0.5);
        ends.with_label_values(&["late"]).inc();
        there.set(3);
        took.with_label_values(&["start"]).observe(0.2);
        let page = families.page().unwrap();
        for line in [
            "# TYPE cloister_test_ends_total counter\n",
            "cloister_test_ends_total{reason=\"late\"} 1\n",
            "cloister_test_things 3\n",
            "cloister_test_work_seconds_total 0.5\n",
            "cloister_test_call_duration_seconds_bucket{call=\"start\",le=\"1\"} 1\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        let rows: Vec<String> = before.iter().map(Row::to_string).collect();
        assert_eq!(
            rows,
            [
                "| `cloister_test_work_seconds_total` | counter | seconds |  | Time of work |",
                "| `cloister_test_ends_total` | counter | number | `reason` | Ends |",
                "| `cloister_test_things` | gauge | number |  | Things |",
                "| `cloister_test_call_duration_seconds` | histogram | seconds | `call` | Calls |",
            ]
        );
        assert!(families.gauge::<prometheus::core::AtomicI64>("things", "Others").is_err(), "one name twice");
    }
}
