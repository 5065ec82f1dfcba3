//! Images from a registry, which runs in the lab's own network.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::api;

use crate::bench::{Bench, IMAGE, busybox, files, gzip};

cases!(a_second_pull_fetches_and_unpacks_nothing);

const REMOTE: &str = "127.0.0.1:5000/test:1";

fn start_registry(bench: &Bench) -> Result<()> {
    let root = bench.lab.root();
    let config = root.join("registry.yml");
    std::fs::write(
        &config,
        format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
            root.join("registry").display()
        ),
    )?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    bench.lab.cell.spawn(&mut command)?;
    wait_for("the registry", Duration::from_secs(10), || {
        let up = bench.lab.cell.inside(|| std::net::TcpStream::connect("127.0.0.1:5000"))?;
        Ok(up.ok().map(drop))
    })
}

fn a_second_pull_fetches_and_unpacks_nothing(bench: &Bench) -> Result<()> {
    start_registry(bench)?;
    let layers = [gzip(busybox()?)?, gzip(files(&[("own", "one")])?)?];
    bench.import("push", "overlayfs", &layers)?;
    bench.lab.ctr(&["-n", "push", "images", "push", "--local", "--plain-http", REMOTE, IMAGE])?;
    bench.remove_images("push")?;

    let pull = ["images", "pull", "--local", "--plain-http", "--snapshotter", "cloister", REMOTE];
    bench.lab.ctr(&[&["-n", "one"], &pull[..]].concat())?;
    ensure!(bench.counter("layers_converted_total")? == 2);
    let content = bench.lab.ctr(&["-n", "one", "content", "ls", "-q"])?;
    ensure!(content.lines().count() == 4, "manifest, config, two layers: {content}");

    // The CRI has contents of its own, and needs none of the layers.
    let handler = ("io.containerd.cri.runtime-handler".to_owned(), "cloister".to_owned());
    let request = api::PullImageRequest {
        image: Some(api::ImageSpec { image: REMOTE.to_owned(), ..Default::default() }),
        auth: None,
        sandbox_config: Some(api::PodSandboxConfig {
            annotations: std::collections::HashMap::from([handler]),
            ..Default::default()
        }),
    };
    bench.lab.cri.pull_image(request)?;
    ensure!(bench.counter("layers_converted_total")? == 2);
    ensure!(bench.counter("layers_skipped_total")? == 2);
    let content = bench.lab.ctr(&["content", "ls", "-q"])?;
    ensure!(content.lines().count() == 2, "manifest and config: {content}");
    ensure!(bench.runc("k8s.io", REMOTE, "c1", "cat /own")? == "one");

    for namespace in ["one", "k8s.io"] {
        bench.remove_images(namespace)?;
    }
    bench.nothing_left()
}
