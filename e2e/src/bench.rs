//! The benchmarks behind `make bench`: every figure of `docs/performance.md`, with its peer in the same run.

pub mod boot;
pub mod builds;
pub mod conversion;
pub mod guests;
pub mod lines;
pub mod memory;
pub mod plot;
pub mod pods;
pub mod stdio;

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::stats::Series;

/// A figure set against what is to be reached.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The row of the issue or document the figure belongs to.
    pub what: String,
    /// The figure, a median or a ratio of medians.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// `≤` or `≥`.
    pub relation: &'static str,
    /// The figure to reach.
    pub goal: f64,
    /// Whether it was reached in this run.
    pub reached: bool,
}

impl Verdict {
    /// A figure that should not be larger than `goal`.
    pub fn at_most(what: &str, value: f64, unit: &'static str, goal: f64) -> Verdict {
        Verdict { what: what.to_owned(), value, unit, relation: "≤", goal, reached: value <= goal }
    }

    /// A figure that should not be smaller than `goal`.
    pub fn at_least(what: &str, value: f64, unit: &'static str, goal: f64) -> Verdict {
        Verdict { what: what.to_owned(), value, unit, relation: "≥", goal, reached: value >= goal }
    }
}

/// All that one run of the benchmarks measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Kernel, processor and the number of cores the figures were made on.
    pub machine: String,
    /// Every measurement.
    pub series: Vec<Series>,
    /// The figures that have a goal.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    /// Adds a measurement and prints its row.
    pub fn add(&mut self, series: Series) {
        println!(
            "{:<58} {:>9.3} {:<5} (min {:.3}, max {:.3}, n {})",
            series.name,
            series.median(),
            series.unit,
            series.min(),
            series.max(),
            series.runs.len()
        );
        let _ = std::io::stdout().flush();
        self.series.push(series);
    }

    /// Adds a figure with a goal and prints its row.
    pub fn judge(&mut self, verdict: Verdict) {
        println!(
            "{} {:<56} {:>9.3} {:<5} goal {} {}",
            if verdict.reached { "✔" } else { "✘" },
            verdict.what,
            verdict.value,
            verdict.unit,
            verdict.relation,
            verdict.goal
        );
        let _ = std::io::stdout().flush();
        self.verdicts.push(verdict);
    }
}

/// Seconds a shell command takes; it must succeed.
pub fn seconds(command: &str) -> Result<f64> {
    let start = Instant::now();
    let status = std::process::Command::new("bash").args(["-o", "pipefail", "-c", command]).status()?;
    if !status.success() {
        bail!("{command}: {status}");
    }
    Ok(start.elapsed().as_secs_f64())
}

/// What the figures were made on.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name").map(|m| m.trim_matches([' ', '\t', ':'])));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} × {cores} cores, Linux {}", model.unwrap_or("unknown processor"), kernel.trim())
}
