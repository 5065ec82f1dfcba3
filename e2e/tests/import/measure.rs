//! What an import of a real image costs.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::containerd::Version;
use cloister_e2e::lab::debian_image;

use crate::bench::{Bench, command, run_case};

/// Most memory that an import may need, conversion in the daemon not counted: pieces of 1 MiB, not blobs.
const MAX_RSS: u64 = 48 << 20;

fn measure(bench: &Bench, kind: &str) -> Result<()> {
    let source = debian_image(kind)?;
    let path = bench.lab.root().join("debian.tar");
    let (from, to) =
        (format!("docker-archive:{}", source.display()), format!("oci-archive:{}", path.display()));
    bench.lab.cell.run("skopeo", &["copy", "-q", &from, &to])?;
    let inspected = bench.lab.cell.run("skopeo", &["inspect", "--format", "{{.Digest}}", &to])?;
    let digest = inspected.trim();
    let size = std::fs::metadata(&path)?.len();
    let path = path.to_string_lossy();
    let args = ["import", "--digest", digest, "-i", &path, "debian:12"];
    for what in ["first", "again"] {
        let start = Instant::now();
        let mut child = bench.lab.cell.spawn(&mut command(&bench.lab, &args)?)?;
        let mut peak = 0;
        while child.try_wait()?.is_none() {
            peak = peak.max(high_water(child.id()).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(5));
        }
        let seconds = start.elapsed().as_secs_f64();
        let mut errors = String::new();
        child.stderr.take().context("no pipe")?.read_to_string(&mut errors)?;
        ensure!(child.wait()?.success(), "{errors}");
        let daemon = high_water(bench.lab.node_pid().context("no daemon")?).unwrap_or_default();
        println!(
            "import of {} MB, {what}: {seconds:.2} s, peak RSS {} MiB, of the daemon that converts {} MiB",
            size / 1_000_000,
            peak >> 20,
            daemon >> 20
        );
        ensure!(peak < MAX_RSS, "{} MiB", peak >> 20);
    }
    Ok(())
}

fn high_water(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn memory_does_not_grow_with_the_image_on_2_1() {
    run_case(Version::V2_1, |bench| measure(bench, "demo"));
}

#[test]
fn nor_with_that_of_a_large_one_on_2_1() {
    run_case(Version::V2_1, |bench| measure(bench, "large"));
}
