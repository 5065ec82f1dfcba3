//! Where the time of a build goes.

use std::time::Duration;

use crate::args::Format;

/// How long the parts of a build took.
#[derive(Debug, Default)]
pub struct Parts(Vec<(&'static str, Duration)>);

impl Parts {
    /// One more.
    pub fn add(&mut self, name: &'static str, took: Duration) {
        self.0.push((name, took));
    }

    /// On standard error, as one line or one JSON document.
    pub fn show(&self, format: Format) {
        if format == Format::Json {
            let micros = self.0.iter().map(|(name, took)| {
                ((*name).to_owned(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX).into())
            });
            eprintln!("{}", serde_json::json!({ "timings": serde_json::Map::from_iter(micros) }));
            return;
        }
        let parts = self.0.iter().map(|(name, took)| format!("{name} {:.1} s", took.as_secs_f64()));
        eprintln!("{}", parts.collect::<Vec<_>>().join(", "));
    }
}
