//! A way out is plugged, lives as long as its VM and no longer, and its end is told.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::time::{Duration, Instant};

use cloister_vmm::{Egress, Event, Vmm};
use lab::{Guest, LIMIT, children, only_child};
use rustix::process::{Pid, Signal, kill_process};

/// How soon everything must be gone.
const GONE: Duration = Duration::from_secs(2);

/// A way out that this test can tell from those of others; nothing is sent.
fn egress(last: u8) -> (Egress, String) {
    let address = format!("198.51.{}.{last}", std::process::id() % 256);
    (Egress::at("lo", address.parse().unwrap()), format!("--map-guest-addr={address}"))
}

async fn gone(word: &str) {
    let began = Instant::now();
    while !children(word).is_empty() {
        assert!(began.elapsed() < GONE, "left: {:?}", children(word));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_way_out_comes_and_goes_and_its_end_is_told() {
    let guest = Guest::boot().await;
    let mut events = guest.vm.events();
    let (first, word) = egress(1);
    let id = guest.vm.plug_egress(first.clone()).await.unwrap();
    only_child(&word).await;
    let address = guest.until("cat /sys/class/net/eth0/address", ":").await;
    assert_eq!(address.trim(), "02:00:00:00:00:01");
    guest.vm.unplug(&id, LIMIT).await.unwrap();
    gone(&word).await;
    assert!(!guest.ask("ls /sys/class/net").await.unwrap().contains("eth0"));

    guest.vm.plug_egress(first).await.unwrap();
    guest.until("ls /sys/class/net", "eth0").await;
    kill(only_child(&word).await);
    let event = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    assert!(
        matches!(&event, Event::EgressFailed { reason } if reason.starts_with("passt ended with signal 9")),
        "{event:?}"
    );
    // The VM is there as before.
    assert!(guest.ask("cat /proc/version").await.unwrap().contains("Linux"));
}

#[tokio::test]
async fn the_end_of_a_vm_is_that_of_its_way_out() {
    for (last, killed) in [(2, true), (3, false)] {
        let guest = Guest::boot().await;
        let (egress, word) = egress(last);
        guest.vm.plug_egress(egress).await.unwrap();
        only_child(&word).await;
        if killed {
            kill(guest.vm.pid());
            guest.vm.wait().await;
        } else {
            drop(guest);
        }
        gone(&word).await;
    }
}
