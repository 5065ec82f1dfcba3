//! What an import into a node has to get right, line by line.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, app};

cases!(
    an_import_is_where_the_cri_looks_and_under_its_canonical_name,
    ready_means_that_the_cri_gives_the_image_by_every_spelling,
    pins_are_on_every_reference_and_as_the_last_import_said,
    a_name_without_a_tag_gets_the_short_digest_and_bad_names_are_refused,
    content_outlives_the_import_and_no_lease_of_it_stays,
    names_are_taken_within_a_namespace_only,
    an_image_with_attestations_is_taken_whole,
    several_builds_may_make_one_image_at_once_and_a_build_a_new_one,
);

const NAME: &str = "docker.io/library/app:1";

fn an_import_is_where_the_cri_looks_and_under_its_canonical_name(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    let out = bench.import(&image, &["app:1"])?;
    ensure!(out == format!("{NAME} {} {}\n", image.digest, image.id), "{out}");
    let names = bench.lab.ctr(&["images", "ls", "-q"])?;
    ensure!(names.lines().any(|name| name == NAME), "{names}");
    ensure!(!names.lines().any(|name| name == "app:1"), "{names}");
    // The CRI's own work: a reference by ID, and its mark.
    ensure!(names.lines().any(|name| name == image.id), "{names}");
    let managed = bench.lab.ctr(&["images", "ls", "-q", "labels.\"io.cri-containerd.image\"==managed"])?;
    ensure!(managed.lines().any(|name| name == NAME), "{managed}");
    let others = bench.lab.ctr(&["-n", "default", "images", "ls", "-q"])?;
    ensure!(others.is_empty(), "{others}");
    Ok(())
}

fn ready_means_that_the_cri_gives_the_image_by_every_spelling(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    bench.import(&image, &["app:1", "reg.example:5000/team/app:2"])?;
    for name in ["app", "docker.io/library/app", "reg.example:5000/team/app"] {
        bench.expect(&format!("{name}@{}", image.digest), &image.id)?;
        bench.expect(&format!("{name}:1@{}", image.digest), &image.id)?;
    }
    let known = bench.expect("app:1", &image.id)?;
    ensure!(known.repo_tags.len() == 2 && known.repo_digests.len() == 2, "{known:?}");
    // Converted: its layers are committed snapshots of ours, and in our store.
    let snapshots = bench.lab.ctr(&["snapshots", "--snapshotter", "cloister", "ls"])?;
    ensure!(snapshots.matches("Committed").count() == 2, "{snapshots}");
    ensure!(bench.stored()? > 0);
    Ok(())
}

fn pins_are_on_every_reference_and_as_the_last_import_said(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    let pinned = || bench.lab.ctr(&["images", "ls", "-q", "labels.\"io.cri-containerd.pinned\"==pinned"]);
    for (more, expected) in [(&["--pin"][..], true), (&[], false), (&["--pin"], true)] {
        bench.import(&image, &[more, &["app:1", "app:2"]].concat())?;
        let names = pinned()?;
        ensure!(names.lines().count() == if expected { 3 } else { 0 }, "{more:?}: {names}");
        cloister_e2e::cell::wait_for("the pin", std::time::Duration::from_secs(5), || {
            Ok((bench.expect(NAME, &image.id)?.pinned == expected).then_some(()))
        })?;
    }
    bench.image(&["unpin", "lab/app"])?;
    ensure!(pinned()?.is_empty());
    bench.image(&["pin", "lab/app"])?;
    ensure!(bench.expect(NAME, &image.id)?.pinned);
    let list = bench.image(&["ls"])?;
    ensure!(list.starts_with("lab/app sha256:") && list.ends_with(" pinned\n"), "{list}");
    Ok(())
}

fn a_name_without_a_tag_gets_the_short_digest_and_bad_names_are_refused(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    bench.import(&image, &["app"])?;
    let tag = image.digest.get(7..19).context("a digest")?;
    bench.expect(&format!("app:{tag}"), &image.id)?;
    ensure!(bench.cri("app:latest")?.is_none(), "a tag for which the kubelet pulls by default");
    let before = bench.holdings()?;
    for bad in ["App:1", "../app", "app:1@sha256:12", "a//b"] {
        let error = bench.import(&image, &[bad]).unwrap_err().to_string();
        ensure!(error.contains("image name") && error.lines().count() == 1, "{error}");
    }
    ensure!(bench.holdings()? == before);
    Ok(())
}

fn content_outlives_the_import_and_no_lease_of_it_stays(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    bench.import(&image, &["app:1"])?;
    let before = bench.holdings()?;
    ensure!(before.unfinished.lines().count() <= 1, "{}", before.unfinished);
    ensure!(before.leases.lines().all(|lease| lease.starts_with("cloister-build-")), "{}", before.leases);
    // A collection takes nothing.
    let collect = || {
        bench.lab.ctr(&["leases", "create", "--id", "collect"])?;
        bench.lab.ctr(&["leases", "delete", "--sync", "collect"])
    };
    collect()?;
    ensure!(bench.holdings()? == before, "{:?} {before:?}", bench.holdings()?);
    ensure!(before.content.lines().count() == 4, "manifest, config, two layers: {}", before.content);
    bench.image(&["rm", "lab/app"])?;
    cloister_e2e::cell::wait_for("nothing", std::time::Duration::from_secs(10), || {
        collect()?;
        let left = bench.holdings()?;
        let nothing = left.images.is_empty() && left.content.is_empty() && left.leases.is_empty();
        Ok((nothing && bench.stored()? == 0).then_some(()))
    })
    .with_context(|| format!("{:?}", bench.holdings()))
}

fn names_are_taken_within_a_namespace_only(bench: &Bench) -> Result<()> {
    let (one, two) = (app("one")?, app("two")?);
    bench.import(&one, &["app:1"])?;
    let other = |build: &str, more: &[&str]| {
        let path = bench.lab.root().join("other.tar");
        two.write(&path)?;
        let path = path.to_string_lossy();
        let args = ["import", "--build", build, "--digest", &two.digest, "-i", &path, "app:1"];
        bench.image(&[&args[..], more].concat())
    };
    let before = bench.holdings()?;
    for more in [&[][..], &["--replace"]] {
        let error = other("foe/app", more).unwrap_err().to_string();
        ensure!(error.contains("of build lab/app"), "{error}");
    }
    ensure!(bench.holdings()? == before);
    bench.expect(NAME, &one.id)?;
    other("lab/second", &[])?;
    bench.expect(NAME, &two.id)?;
    // What was pulled belongs to no build.
    bench.lab.ctr(&["images", "tag", NAME, "docker.io/library/pulled:1"])?;
    bench.lab.ctr(&["images", "label", "docker.io/library/pulled:1", "cloister.dev/build="])?;
    let error = bench.import(&one, &["pulled:1"]).unwrap_err().to_string();
    ensure!(error.contains("image name docker.io/library/pulled:1"), "{error}");
    bench.import(&one, &["--replace", "pulled:1"])?;
    bench.expect("pulled:1", &one.id)?;
    Ok(())
}

fn an_image_with_attestations_is_taken_whole(bench: &Bench) -> Result<()> {
    let image = app("one")?.with_attestation();
    bench.import(&image, &["app:1"])?;
    bench.expect(&format!("app@{}", image.digest), &image.id)?;
    bench.lab.ctr(&["leases", "create", "--id", "collect"])?;
    bench.lab.ctr(&["leases", "delete", "--sync", "collect"])?;
    let content = bench.lab.ctr(&["content", "ls", "-q"])?;
    ensure!(content.lines().count() == 8, "index, two manifests, two configs, three layers: {content}");
    ensure!(bench.image(&["ensure"])? == "lab/app complete\n");
    Ok(())
}

fn several_builds_may_make_one_image_at_once_and_a_build_a_new_one(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    let path = bench.lab.root().join("build.tar");
    image.write(&path)?;
    std::thread::scope(|scope| {
        let imports: Vec<_> = (0..4)
            .map(|number| {
                let (build, name) = (format!("lab/b{number}"), format!("app:{number}"));
                let (path, digest) = (path.to_string_lossy(), &image.digest);
                scope.spawn(move || {
                    let args = ["import", "--build", &build, "--digest", digest, "-i", &path, &name];
                    bench.image(&args)
                })
            })
            .collect();
        imports.into_iter().try_for_each(|import| import.join().expect("a thread died").map(drop))
    })?;
    for number in 0..4 {
        bench.expect(&format!("app:{number}"), &image.id)?;
    }
    // Of what a build made before nothing stays, and others keep theirs.
    let next = app("two")?;
    next.write(&path)?;
    let path = path.to_string_lossy();
    bench.image(&["import", "--build", "lab/b3", "--digest", &next.digest, "-i", &path, "new:1"])?;
    bench.expect("new:1", &next.id)?;
    let names = bench.lab.ctr(&["images", "ls", "-q"])?;
    ensure!(!names.lines().any(|name| name == "docker.io/library/app:3"), "{names}");
    bench.expect("app:2", &image.id)?;
    for number in 0..4 {
        bench.image(&["rm", &format!("lab/b{number}")])?;
    }
    let left = bench.holdings()?;
    ensure!(left.images.is_empty() && left.leases.is_empty(), "{left:?}");
    Ok(())
}
