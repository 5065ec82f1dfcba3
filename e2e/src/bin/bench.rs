//! `make bench`: measures what the documents claim and writes `target/bench.json`, and bar charts with `--plot DIR`.

use anyhow::{Result, bail};
use cloister_e2e::bench::{Report, boot, conversion, machine, plot, stdio};

fn main() -> Result<()> {
    let mut plots = None;
    let mut only = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--plot" => plots = args.next(),
            "--only" => only = args.next(),
            _ => bail!("usage: bench [--only conversion|layers|boot|stdio] [--plot DIR], not {arg}"),
        }
    }
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let mut report = Report { machine: machine(), ..Report::default() };
    println!("{}", report.machine);
    if wanted("conversion") {
        conversion::one_layer(&mut report)?;
    }
    if wanted("layers") {
        conversion::four_layers(&mut report)?;
    }
    if wanted("boot") {
        boot::warm(&mut report)?;
    }
    if wanted("stdio") {
        stdio::gigabyte(&mut report)?;
    }
    std::fs::write("target/bench.json", serde_json::to_string_pretty(&report)?)?;
    if let Some(folder) = plots {
        std::fs::create_dir_all(&folder)?;
        for (file, title, unit) in [
            ("seconds.svg", "Time, median with minimum and maximum", "s"),
            ("rates.svg", "Throughput", "MB/s"),
        ] {
            let series: Vec<_> = report.series.iter().filter(|s| s.unit == unit).collect();
            std::fs::write(format!("{folder}/{file}"), plot::bars(title, &series))?;
        }
    }
    let missed = report.verdicts.iter().filter(|v| !v.reached).count();
    println!(
        "{} of {} goals reached; target/bench.json",
        report.verdicts.len() - missed,
        report.verdicts.len()
    );
    Ok(())
}
