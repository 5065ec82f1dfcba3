//! Whatever ends the owner of a VM, nothing of the VM is left; and a saved VM can be continued.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloister_vmm::{Egress, Qemu, Share, Vmm};
use lab::{Guest, LIMIT, children, config, host, only_child};

/// By which the owner's way out is known.
const OWNERS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

/// Not a test of its own: the process that the next test kills, when it is started by it.
#[tokio::test]
async fn owner() {
    let Some(dir) = std::env::var_os("CLOISTER_TEST_OWNER") else { return };
    let dir = std::path::PathBuf::from(dir);
    let vm = Qemu::create(&host(), config(&dir)).await.unwrap();
    vm.start().await.unwrap();
    drop(vm.dial_until_ready(1024, LIMIT).await.unwrap());
    let path = dir.join("shared");
    fs::create_dir(&path).unwrap();
    vm.plug_share(Share { tag: "x".into(), path, read_only: false }).await.unwrap();
    lab::ask(&vm, "mount virtiofs x /x").await.ok();
    vm.plug_egress(Egress::at("lo", OWNERS)).await.unwrap();
    fs::write(dir.join("ready"), vm.pid().to_string()).unwrap();
    tokio::time::sleep(LIMIT).await;
}

#[tokio::test]
async fn the_death_of_the_owner_takes_everything_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner", "--nocapture"])
        .env("CLOISTER_TEST_OWNER", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut pid = String::new();
    while pid.is_empty() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
        pid = fs::read_to_string(dir.path().join("ready")).unwrap_or_default();
    }
    assert!(!pid.is_empty(), "the owner never got ready");
    let word = dir.path().display().to_string();
    assert!(!children(&format!("--shared-dir={word}")).is_empty());
    let out = format!("--map-guest-addr={OWNERS}");
    only_child(&out).await;
    owner.kill().unwrap();
    let killed = Instant::now();
    owner.wait().unwrap();
    loop {
        let daemons = [children(&format!("--shared-dir={word}")), children(&out)].concat();
        let qemu = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if daemons.is_empty() && qemu.is_empty() {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(2), "left: {daemons:?}, QEMU {}", !qemu.is_empty());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut left: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["console.log", "ready", "shared"]);
}

#[tokio::test]
async fn a_saved_vm_is_continued_by_copies() {
    let guest = Guest::boot().await;
    guest.ask("write /marker saved").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    guest.vm.snapshot(folder.path()).await.unwrap();
    assert!(guest.vm.dial(1024, LIMIT).await.unwrap_err().to_string().contains("was saved"));
    drop(guest);
    let mut copies = Vec::new();
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.restore = Some(folder.path().to_owned());
        let began = Instant::now();
        let vm = Qemu::create(&host(), config).await.unwrap();
        vm.start().await.unwrap();
        drop(vm.dial_until_ready(1024, LIMIT).await.unwrap());
        println!("restored and answering after {:?}", began.elapsed());
        let copy = Guest { vm, dir };
        assert_eq!(copy.ask("cat /marker").await.unwrap(), "saved");
        copies.push(copy);
    }
    // Copies share nothing, and devices can be plugged into them.
    copies[0].ask("write /marker changed").await.unwrap();
    assert_eq!(copies[1].ask("cat /marker").await.unwrap(), "saved");
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("f"), "shared").unwrap();
    let share = Share { tag: "s".into(), path: shared.path().to_owned(), read_only: true };
    copies[1].vm.plug_share(share).await.unwrap();
    copies[1].until("mount virtiofs s /s", "").await;
    assert_eq!(copies[1].ask("cat /s/f").await.unwrap(), "shared");

    let dir = tempfile::tempdir().unwrap();
    let mut other = config(dir.path());
    other.restore = Some(folder.path().to_owned());
    other.memory *= 2;
    let error = Qemu::create(&host(), other).await.unwrap_err().to_string();
    assert!(error.contains("was saved from another machine"), "{error}");
}
