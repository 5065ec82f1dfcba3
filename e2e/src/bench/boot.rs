//! From QEMU's start to the agent's first answer, and a whole `run` of an image that is already there.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Report, Verdict};
use crate::lab::Lab;
use crate::stats::Series;

const RUNS: usize = 10;

/// Boots the demo image again and again and takes the steps apart.
pub fn warm(report: &mut Report) -> Result<()> {
    let lab = Lab::with_debian()?;
    let mut steps: Vec<Series> = Vec::new();
    let mut agent = Series::new("QEMU start → agent answers", "s");
    let mut whole = Series::new("cloister run --rm debian -- true, whole command", "s");
    lab.ok(&["run", "--rm", "debian", "--", "true"])?;
    for _ in 0..RUNS {
        let start = Instant::now();
        let output = lab.run(&["--output", "json", "run", "--rm", "--timings", "debian", "--", "true"])?;
        whole.runs.push(start.elapsed().as_secs_f64());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line =
            text.lines().find(|l| l.starts_with('{')).with_context(|| format!("no timings in {text}"))?;
        let timings: Value = serde_json::from_str(line)?;
        let mut until_agent = 0.0;
        for (index, step) in timings["timings"].as_array().context("no steps")?.iter().enumerate() {
            let name = step["step"].as_str().context("no step")?;
            let seconds = step["micros"].as_f64().context("no micros")? / 1e6;
            if steps.len() <= index {
                steps.push(Series::new(&format!("  {name}"), "s"));
            }
            steps[index].runs.push(seconds);
            if matches!(name, "vmm" | "agent") {
                until_agent += seconds;
            }
        }
        agent.runs.push(until_agent);
    }
    let answered = agent.median();
    report.add(whole);
    for step in steps {
        report.add(step);
    }
    report.add(agent);
    report.judge(Verdict::at_most("cold boot: QEMU start → agent answers", answered, "s", 1.0));
    size(report)
}

/// What a guest is made of on disk.
fn size(report: &mut Report) -> Result<()> {
    let mut total = 0.0;
    for file in ["vmlinux", "initramfs"] {
        let bytes = std::fs::metadata(crate::lab::guest().join(file))?.len() as f64;
        let mut series = Series::new(&format!("size of {file}"), "MB");
        series.runs.push(bytes / 1e6);
        total += bytes / 1e6;
        report.add(series);
    }
    report.judge(Verdict::at_most("kernel and initramfs", total, "MB", 50.0));
    Ok(())
}
