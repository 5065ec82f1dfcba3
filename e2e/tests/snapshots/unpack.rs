//! Images become layers of the store, never a tree of files on the host.

use anyhow::{Result, ensure};
use cloister_e2e::archive::{Layer, raw_entry, tar};
use cloister_e2e::pod_images::{self, LAYER_COUNT, LAYERS};

use crate::bench::{Bench, IMAGE, busybox, files, gzip};

cases!(
    many_layers_are_unpacked_without_a_file_of_theirs_on_the_host_and_removed_again,
    a_layer_of_two_images_is_converted_once,
    what_was_unpacked_for_overlayfs_first_goes_through_the_differ_later,
    hostile_layers_fail_with_a_reason_and_leave_nothing,
    layers_of_snapshots_survive_a_prune_of_the_image_store,
    views_and_writable_mounts_of_an_image_show_it_whole,
    a_container_goes_on_while_the_daemon_is_restarted,
);

fn many_layers_are_unpacked_without_a_file_of_theirs_on_the_host_and_removed_again(
    bench: &Bench,
) -> Result<()> {
    let archive = pod_images::archives(&[LAYERS])?.remove(0);
    bench.import_file("k8s.io", "cloister", &archive)?;
    ensure!(bench.layers()? == LAYER_COUNT && bench.snapshots()?.len() == LAYER_COUNT);
    for dir in bench.snapshots()? {
        let names: Vec<_> = std::fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names == ["meta.json"], "{}: {names:?}", dir.display());
    }
    let out = bench.runc(
        "k8s.io",
        LAYERS,
        "c1",
        "cat /top; ls /layers | wc -l; echo x > /written; cat /written",
    )?;
    ensure!(out == "127\n127\nx\n", "{out}");
    bench.remove_images("k8s.io")?;
    bench.nothing_left()
}

fn a_layer_of_two_images_is_converted_once(bench: &Bench) -> Result<()> {
    let base = || gzip(busybox()?);
    bench.import("k8s.io", "cloister", &[base()?, files(&[("own", "one")])?])?;
    ensure!(bench.counter("layers_converted_total")? == 2);
    // On another parent, in another image and another namespace.
    bench.import("other", "cloister", &[files(&[("first", "two")])?, base()?])?;
    ensure!(bench.counter("layers_converted_total")? == 3);
    ensure!(bench.layers()? == 3);
    let out = bench.runc("other", IMAGE, "c1", "cat /first")?;
    ensure!(out == "two", "{out}");
    bench.remove_images("k8s.io")?;
    ensure!(bench.runc("other", IMAGE, "c2", "cat /first")? == "two");
    bench.remove_images("other")?;
    bench.nothing_left()
}

fn what_was_unpacked_for_overlayfs_first_goes_through_the_differ_later(bench: &Bench) -> Result<()> {
    bench.import("k8s.io", "overlayfs", &[gzip(busybox()?)?, files(&[("own", "one")])?])?;
    ensure!(bench.layers()? == 0);
    // The client unpacks what is missing, without the label that allows a layer to be skipped.
    let out = bench.runc("k8s.io", IMAGE, "c1", "cat /own")?;
    ensure!(out == "one", "{out}");
    ensure!(bench.counter("layers_converted_total")? == 2 && bench.layers()? == 2);
    bench.remove_images("k8s.io")?;
    bench.nothing_left()
}

fn hostile_layers_fail_with_a_reason_and_leave_nothing(bench: &Bench) -> Result<()> {
    let escape = tar(|to| raw_entry(to, tar::EntryType::Regular, b"../../escape", b"", b"x"))?;
    let device = tar(|to| raw_entry(to, tar::EntryType::Symlink, b"out", b"/", b""))
        .and_then(|_| tar(|to| raw_entry(to, tar::EntryType::Regular, b"out/../../../x", b"", b"x")))?;
    let mut broken = gzip(busybox()?)?;
    broken.blob.truncate(broken.blob.len() / 2);
    let mut liar = files(&[("x", "y")])?;
    liar.diff_id = files(&[("x", "z")])?.diff_id;
    for (layer, reason) in [
        (Layer::plain(escape), "../../escape"),
        (Layer::plain(device), "out/../../../x"),
        (broken, "gzip"),
        (Layer::plain(b"no tar at all".repeat(100)), "tar"),
        (liar, "wrong diff id"),
    ] {
        let error = match bench.import("k8s.io", "cloister", &[layer]) {
            Ok(()) => anyhow::bail!("{reason}: it was taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(reason), "{reason}: {error}");
        bench.remove_images("k8s.io")?;
        // What failed may still be referred to until the next collection.
        bench.import("k8s.io", "cloister", &[busybox()?])?;
        bench.remove_images("k8s.io")?;
        bench.nothing_left()?;
    }
    Ok(())
}

fn layers_of_snapshots_survive_a_prune_of_the_image_store(bench: &Bench) -> Result<()> {
    bench.import("k8s.io", "cloister", &[busybox()?, files(&[("own", "one")])?])?;
    let store = cloister_image::Store::open(bench.store())?;
    for restart in [false, true] {
        if restart {
            bench.lab.stop_node(true)?;
        }
        ensure!(store.prune(true, None)?.files == 0);
    }
    bench.lab.start_node()?;
    ensure!(bench.runc("k8s.io", IMAGE, "c1", "cat /own")? == "one");
    Ok(())
}

fn views_and_writable_mounts_of_an_image_show_it_whole(bench: &Bench) -> Result<()> {
    for layers in [vec![busybox()?], vec![busybox()?, files(&[("own", "one")])?]] {
        bench.import("k8s.io", "cloister", &layers)?;
        for (options, writable) in [(&[][..], false), (&["--rw"][..], true)] {
            let at = bench.lab.root().join("mounted");
            std::fs::create_dir_all(&at)?;
            let at = at.to_string_lossy().into_owned();
            let mount = ["images", "mount", "--snapshotter", "cloister"];
            bench.lab.ctr(&[&mount[..], options, &[IMAGE, &at]].concat())?;
            bench.lab.cell.run("test", &["-x", &format!("{at}/bin/busybox")])?;
            let written = bench.lab.cell.run("touch", &[&format!("{at}/new")]);
            ensure!(written.is_ok() == writable, "{written:?}");
            bench.lab.ctr(&["images", "unmount", "--snapshotter", "cloister", "--rm", &at])?;
        }
        bench.remove_images("k8s.io")?;
        bench.nothing_left()?;
    }
    Ok(())
}

fn a_container_goes_on_while_the_daemon_is_restarted(bench: &Bench) -> Result<()> {
    bench.import("k8s.io", "cloister", &[busybox()?, files(&[("own", "one")])?])?;
    let run = ["run", "-d", "--snapshotter", "cloister", "--runtime", "io.containerd.runc.v2"];
    bench.lab.ctr(&[&run[..], &[IMAGE, "c1", "/bin/busybox", "sleep", "1000"]].concat())?;
    bench.lab.stop_node(true)?;
    let read = ["tasks", "exec", "--exec-id", "e", "c1", "/bin/busybox", "cat", "/own"];
    ensure!(bench.lab.ctr(&read)? == "one");
    bench.lab.start_node()?;
    ensure!(bench.lab.ctr(&read)? == "one");
    // A second one shares the mounts that were there.
    ensure!(bench.runc("k8s.io", IMAGE, "c2", "cat /own")? == "one");
    bench.lab.ctr(&["tasks", "rm", "-f", "c1"])?;
    bench.lab.ctr(&["containers", "rm", "c1"])?;
    bench.remove_images("k8s.io")?;
    bench.nothing_left()
}
