//! The figures of docs/metrics.md, drawn from a Prometheus: `make figures`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cloister_e2e::bench::lines::{Line, lines};
use cloister_e2e::bench::plot::bars;
use cloister_e2e::lab::checkout;
use cloister_e2e::prometheus::Prometheus;
use cloister_e2e::stats;

/// Distance of points, and how long one may be missing, in seconds.
const STEP: u32 = 1;
const GAP: f64 = 5.0;
const MIB: f64 = 1_048_576.0;

/// A query, what its lines are called (with labels in braces), and what 1 in the figure is.
struct Query(&'static str, &'static str, f64);

/// File, title, unit and queries of figures over time.
const LINES: [(&str, &str, &str, &[Query]); 4] = [
    (
        "metrics-builds",
        "Builds, one at a time",
        "builds",
        &[
            Query("sum(cloister_operator_builds_active)", "run", 1.0),
            Query("sum(cloister_operator_build_queue_length)", "wait for their turn", 1.0),
            Query("sum(cloister_operator_builds_total{result=\"succeeded\"})", "ended well", 1.0),
            Query("sum(cloister_operator_builds_total{result=\"failed\"})", "failed", 1.0),
        ],
    ),
    (
        "metrics-layers",
        "Conversion of layers, uncompressed",
        "MB/s",
        &[Query("sum by (node) (rate(cloister_node_layer_tar_bytes_total[4s]))", "node {node}", 1e6)],
    ),
    (
        "metrics-machines",
        "Memory of microVMs",
        "MiB",
        &[
            Query("sum by (node) (cloister_pod_vm_memory_bytes)", "{node}: given to guests", MIB),
            Query("sum by (node) (cloister_pod_vmm_proportional_memory_bytes)", "{node}: taken", MIB),
        ],
    ),
    (
        "metrics-programs",
        "Memory of the programs, resident",
        "MiB",
        &[Query("process_resident_memory_bytes", "{container}, {node}", MIB)],
    ),
];

/// File, title, query and label of figures with one bar for each series.
const BARS: [(&str, &str, &str, &str); 2] = [
    (
        "metrics-stages",
        "Parts of builds, mean",
        "sum by (phase) (cloister_operator_build_duration_seconds_sum) / sum by (phase) (cloister_operator_build_duration_seconds_count)",
        "phase",
    ),
    (
        "metrics-starts",
        "Steps of a pod's start, mean",
        "sum by (step) (cloister_pod_start_step_duration_seconds_sum) / sum by (step) (cloister_pod_start_step_duration_seconds_count)",
        "step",
    ),
];

/// Draws every figure of a time into the folder FIGURES, or `target/figures`.
pub fn draw(prometheus: &Prometheus<'_>, over: (f64, f64)) -> Result<()> {
    let folder = std::env::var_os("FIGURES").map_or(checkout().join("target/figures"), PathBuf::from);
    fs::create_dir_all(&folder)?;
    let write = |file: &str, svg: String| {
        let path = folder.join(file).with_extension("svg");
        fs::write(&path, svg).with_context(|| path.display().to_string())
    };
    for (file, title, unit, queries) in LINES {
        let mut drawn = Vec::new();
        for Query(query, name, one) in queries {
            for series in prometheus.over(query, over, STEP)? {
                let points = series.points.iter().map(|(time, value)| (time - over.0, value / one));
                let mut name = (*name).to_owned();
                for label in ["node", "container"] {
                    name = name.replace(&format!("{{{label}}}"), series.label(label));
                }
                drawn.push(Line { name, points: points.collect() });
            }
        }
        ensure!(!drawn.is_empty(), "{title}: nothing to draw");
        write(file, lines(title, unit, over.1 - over.0, GAP, &drawn))?;
    }
    for (file, title, query, label) in BARS {
        let mut drawn: Vec<stats::Series> = prometheus
            .now(query)?
            .iter()
            .map(|series| {
                let mut bar = stats::Series::new(series.label(label), "s");
                bar.runs.extend(series.points.last().map(|point| point.1));
                bar
            })
            .collect();
        ensure!(!drawn.is_empty(), "{title}: nothing to draw");
        drawn.sort_by(|one, other| other.median().total_cmp(&one.median()));
        write(file, bars(title, &drawn.iter().collect::<Vec<_>>()))?;
    }
    Ok(())
}
