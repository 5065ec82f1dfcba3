//! An import killed at any moment.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::oci_archive::OciArchive;

use crate::bench::{Bench, busybox, command, noise};

cases!(an_import_cut_short_by_kill_9_leaves_nothing_and_works_when_tried_again);

/// How many moments of an import are tried.
const MOMENTS: u32 = 6;

fn an_import_cut_short_by_kill_9_leaves_nothing_and_works_when_tried_again(bench: &Bench) -> Result<()> {
    let image = OciArchive::new(&[busybox()?, noise(1, 16 << 20)?, noise(2, 16 << 20)?]);
    let path = bench.lab.root().join("killed.tar");
    image.write(&path)?;
    let path = path.to_string_lossy();
    let args = ["import", "--build", "lab/app", "--digest", &image.digest, "-i", &path, "app:1"];
    let start = Instant::now();
    bench.image(&args)?;
    let whole = start.elapsed();
    bench.image(&["rm", "lab/app"])?;
    let mut cut = 0;
    for moment in 1..=MOMENTS {
        let mut child = bench.lab.cell.spawn(&mut command(&bench.lab, &args)?)?;
        std::thread::sleep(whole * moment / (MOMENTS + 1));
        child.kill()?;
        cut += u32::from(!child.wait()?.success());
        // Another process: it finds what the dead one left, by its name.
        bench.image(&["ensure"])?;
        // Unless the image was complete but for its references: then it is completed.
        if bench.image(&["ls"])?.is_empty() {
            let left = bench.holdings()?;
            ensure!(left.images.is_empty() && left.content.is_empty(), "{left:?}");
            ensure!(left.leases.is_empty() && left.unfinished.lines().count() <= 1, "{left:?}");
            wait_for("the end of all layers", Duration::from_secs(10), || {
                Ok((bench.stored()? == 0).then_some(()))
            })?;
        }
        bench.image(&args).context("a second import")?;
        bench.expect("app:1", &image.id)?;
        bench.image(&["rm", "lab/app"])?;
    }
    ensure!(cut >= MOMENTS / 2, "only {cut} imports were cut short: the moments are wrong");

    // The daemon that converts the layers dies instead: the import fails with a reason, and works when tried again.
    std::thread::scope(|scope| -> Result<()> {
        let import = scope.spawn(|| bench.image(&args));
        std::thread::sleep(whole / 2);
        bench.lab.stop_node(true)?;
        drop(import.join());
        Ok(())
    })?;
    bench.lab.start_node()?;
    wait_for("a second import", Duration::from_secs(15), || Ok(bench.image(&args).ok()))?;
    bench.expect("app:1", &image.id).map(drop)
}
