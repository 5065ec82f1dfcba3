//! The daemon restarted where systemd holds its socket.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use cloister_e2e::node;

use crate::bench::{Bench, IMAGE, busybox, files, gzip};

cases!(what_containerd_asks_while_the_daemon_restarts_waits);

/// How long the daemon is away: containerd's own patience with a silent socket is a second.
const AWAY: Duration = Duration::from_millis(400);

fn what_containerd_asks_while_the_daemon_restarts_waits(bench: &Bench) -> Result<()> {
    let lab = &bench.lab;
    lab.stop_node(false)?;
    let path = node::socket(lab.root());
    ensure!(!path.exists(), "the daemon left its own socket");
    let socket = UnixListener::bind(&path)?;
    lab.start_node_on(&socket)?;
    let layers = [gzip(busybox()?)?, gzip(files(&[("own", "one")])?)?];
    bench.import("k8s.io", "cloister", &layers)?;
    bench.remove_images("k8s.io")?;
    for kill in [true, false] {
        lab.stop_node(kill)?;
        ensure!(path.exists(), "the daemon removed a socket that is not its own");
        std::thread::scope(|scope| -> Result<()> {
            let import = scope.spawn(|| bench.import("k8s.io", "cloister", &layers));
            std::thread::sleep(AWAY);
            ensure!(!import.is_finished(), "nobody waited: {:?}", import.join());
            lab.start_node_on(&socket)?;
            import.join().expect("a thread died")
        })?;
        ensure!(bench.runc("k8s.io", IMAGE, "c1", "cat /own")? == "one");
        bench.remove_images("k8s.io")?;
    }
    bench.nothing_left()
}
