//! What becomes of an image that somebody removes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::api;

use crate::bench::{Bench, app};

cases!(
    an_image_that_was_removed_comes_back_while_its_build_exists,
    ensure_says_what_is_missing_without_a_daemon,
);

/// How long the daemon may take to see it and mend it.
const HEALED: Duration = Duration::from_secs(10);

fn an_image_that_was_removed_comes_back_while_its_build_exists(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    bench.import(&image, &["--pin", "app:1", "app:2"])?;
    let by_digest = format!("docker.io/library/app@{}", image.digest);
    let all = ["docker.io/library/app:1", "docker.io/library/app:2", &by_digest];
    let healed = |what: &str| {
        wait_for(what, HEALED, || {
            for name in all {
                match bench.cri(name)? {
                    Some(known) if known.id == image.id && known.pinned => {}
                    _ => return Ok(None),
                }
            }
            let names = bench.lab.ctr(&["images", "ls", "-q"])?;
            Ok(all.iter().all(|name| names.lines().any(|line| line == *name)).then_some(()))
        })
    };
    // As the kubelet's garbage collection does: every reference goes.
    let remove = |name: &str| {
        let image = Some(api::ImageSpec { image: name.to_owned(), ..Default::default() });
        bench.lab.cri.remove_image(api::RemoveImageRequest { image }).context("RemoveImage")
    };
    remove(&image.id)?;
    healed("the image after RemoveImage")?;
    for name in all {
        bench.lab.ctr(&["images", "rm", "--sync", name])?;
        healed(name)?;
    }
    // With the daemon away nothing happens; it looks when it starts.
    bench.lab.stop_node(true)?;
    remove(&image.id)?;
    ensure!(bench.cri("app:1")?.is_none());
    bench.lab.start_node()?;
    healed("the image after a restart")?;
    // A name that somebody else has by now is theirs.
    bench.image(&["rm", "lab/app"])?;
    wait_for("the end of the image", HEALED, || Ok(bench.cri("app:1")?.is_none().then_some(())))?;
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(bench.cri("app:1")?.is_none(), "a build that is gone has no image");
    Ok(())
}

fn ensure_says_what_is_missing_without_a_daemon(bench: &Bench) -> Result<()> {
    let image = app("one")?;
    bench.import(&image, &["app:1"])?;
    ensure!(bench.image(&["ensure", "lab/app"])? == "lab/app complete\n");
    let blob = bench.lab.ctr(&["content", "ls", "-q"])?.lines().next().context("a blob")?.to_owned();
    bench.lab.ctr(&["content", "rm", &blob])?;
    let error = bench.image(&["ensure", "lab/app"]).unwrap_err().to_string();
    ensure!(error.contains("lab/app") && error.contains("not found"), "{error}");
    // Another import of the same archive mends it.
    bench.import(&image, &["app:1"])?;
    ensure!(bench.image(&["ensure", "lab/app"])? == "lab/app complete\n");
    ensure!(bench.image(&["ensure", "lab/none"]).unwrap_err().to_string().contains("lab/none: not found"));
    Ok(())
}
