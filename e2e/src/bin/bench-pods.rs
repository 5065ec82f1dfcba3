//! `make bench-pods`: pods in microVMs beside runc's on the same containerd, into `target/bench-pods.json`.

use anyhow::{Context, Result, bail};
use cloister_e2e::bench::{Report, machine, memory, pods};

fn main() -> Result<()> {
    let (mut only, mut runs) = (None, 10);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = args.next(),
            "--runs" => runs = args.next().context("--runs needs a number")?.parse()?,
            _ => bail!("usage: bench-pods [--only start|at-once|memory|files|network] [--runs N], not {arg}"),
        }
    }
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let mut report = Report { machine: machine(), ..Report::default() };
    println!("{}", report.machine);
    let mut rig = pods::lab()?;
    if wanted("start") {
        pods::start(&mut rig, &mut report, runs)?;
    }
    if wanted("memory") {
        memory::idle(&mut rig, &mut report)?;
    }
    if wanted("files") {
        pods::files(&mut rig, &mut report)?;
    }
    if wanted("network") {
        pods::network(&mut rig, &mut report)?;
    }
    if wanted("at-once") {
        pods::at_once(&mut rig, &mut report, 20)?;
    }
    rig.finish()?;
    std::fs::write("target/bench-pods.json", serde_json::to_string_pretty(&report)?)?;
    let reached = report.verdicts.iter().filter(|verdict| verdict.reached).count();
    println!("{reached} of {} goals reached; target/bench-pods.json", report.verdicts.len());
    Ok(())
}
