//! A second run of an image converts nothing and reads no layer on the host: the guest fetches the blocks it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cloister_e2e::{Lab, lab::guest};

/// Inode, length and modification time of each layer file.
fn layers(root: &Path) -> BTreeMap<PathBuf, (u64, u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root.join("layers/v1")).unwrap() {
        let path = entry.unwrap().path();
        let about = fs::metadata(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "erofs") {
            found.insert(path, (about.ino(), about.len(), about.modified().unwrap()));
        }
    }
    found
}

/// Bytes a process has read so far, from files and sockets alike (`rchar` of proc_pid_io(5)).
fn read_by(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_second_run_converts_nothing_and_reads_no_layer() {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["run", "--rm", "debian", "true"]).unwrap();
    let before = layers(lab.root());
    let total: u64 = before.values().map(|(_, bytes, _)| bytes).sum();
    assert!(before.len() == 3 && total > 100 << 20, "{before:?}");

    lab.ok(&["run", "--detach", "--name", "warm", "debian", "--", "sleep", "600"]).unwrap();
    let record = fs::read(lab.root().join("run/warm/state.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let supervisor = record["pid"].as_u64().unwrap();
    let read = read_by(supervisor);
    lab.ok(&["stop", "-t", "0", "warm"]).unwrap();
    // It copies the guest's kernel and initramfs into memory that it gives back after the boot, and nothing else.
    let guest = ["vmlinux", "initramfs"].map(|file| fs::metadata(guest().join(file)).unwrap().len());
    let read = read.saturating_sub(guest.iter().sum());
    assert!(read < 4 << 20, "the supervisor read {read} bytes of a {total} byte image");
    assert_eq!(layers(lab.root()), before);
}
