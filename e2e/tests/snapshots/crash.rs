//! The daemon killed at any moment.

use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::archive::Layer;
use cloister_e2e::cell::wait_for;

use crate::bench::{Bench, IMAGE, busybox, files, gzip, noise};

cases!(an_unpack_cut_short_by_kill_9_is_invisible_and_works_when_tried_again);

fn image() -> Result<Vec<Layer>> {
    let mut layers = vec![busybox()?, files(&[("own", "one")])?];
    for seed in 1..5 {
        layers.push(gzip(noise(seed, 8 << 20)?)?);
    }
    Ok(layers)
}

fn an_unpack_cut_short_by_kill_9_is_invisible_and_works_when_tried_again(bench: &Bench) -> Result<()> {
    let layers = image()?;
    let mut cut = 0;
    // Moments spread over the whole of an unpack, which takes about a second.
    for milliseconds in (20..1000).step_by(90) {
        std::thread::scope(|scope| -> Result<()> {
            let import = scope.spawn(|| bench.import("k8s.io", "cloister", &layers));
            std::thread::sleep(Duration::from_millis(milliseconds));
            bench.lab.stop_node(true)?;
            cut += u32::from(import.join().expect("a thread died").is_err());
            Ok(())
        })?;
        bench.lab.start_node()?;
        // What is there is whole.
        let store = cloister_image::Store::open(bench.store())?;
        for layer in store.layers()? {
            ensure!(store.open_layer(&layer)?.is_some(), "{layer}");
        }
        ensure!(std::fs::read_dir(bench.store().join("tmp"))?.next().is_none());
        for dir in bench.snapshots()? {
            ensure!(dir.join("meta.json").exists(), "{}", dir.display());
        }
        // containerd waits up to three seconds before it connects again.
        wait_for("another unpack", Duration::from_secs(10), || {
            match bench.import("k8s.io", "cloister", &layers) {
                Err(error) if format!("{error:#}").contains("connection refused") => Ok(None),
                result => result.map(Some),
            }
        })?;
        let out = bench.runc("k8s.io", IMAGE, "c1", "cat /own; wc -c < /noise-4")?;
        ensure!(out == format!("one{}\n", 8 << 20), "{out}");
        bench.remove_images("k8s.io")?;
        bench.nothing_left()?;
    }
    ensure!(cut >= 3, "only {cut} unpacks were cut short: the moments are wrong");
    Ok(())
}
