//! Images made to harm their reader: every one is refused with one line that names the entry or the bound, the store
//! is as it was, and memory stays below 256 MiB.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::io::Write;

use cloister_e2e::Lab;
use cloister_e2e::archive::{self, Layer, docker_archive, raw_entry, tar};
use tar::EntryType;

/// What an import may take, in bytes, whatever the image.
const MEMORY: u64 = 256 << 20;

/// Imports layers that must be refused with a line containing `reason`.
fn refused(layers: &[Layer], reason: &str) {
    let lab = Lab::new().unwrap();
    lab.ok(&["image", "ls"]).unwrap();
    let before = cloister_e2e::Leftovers::below(lab.root()).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("image.tar");
    docker_archive(&path, layers).unwrap();
    let (output, peak) = lab.run_watched(&["image", "import", "bad", "-i", &path.to_string_lossy()]).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "was imported, should name {reason:?}");
    let last = error.trim_end().lines().last().unwrap_or_default().to_owned();
    assert!(last.contains(reason), "the error should contain {reason:?}: {error}");
    let new: Vec<String> = before.new_since(lab.root(), std::time::Duration::ZERO).unwrap();
    let new: Vec<&String> = new.iter().filter(|f| !is_bookkeeping(f)).collect();
    assert!(new.is_empty(), "left behind: {new:?}");
    assert!(peak < MEMORY, "peak {} MiB", peak >> 20);
}

/// Empty folders and lock files of the store are not leftovers of an image.
fn is_bookkeeping(fact: &str) -> bool {
    let Some(path) = fact.strip_prefix("file ") else { return false };
    std::fs::metadata(path).is_ok_and(|m| m.is_dir() || m.len() == 0)
}

fn one(kind: EntryType, name: &[u8], link: &[u8]) -> Vec<Layer> {
    vec![Layer::plain(tar(|b| raw_entry(b, kind, name, link, b"")).unwrap())]
}

#[test]
fn names_that_climb_out_are_refused() {
    refused(&one(EntryType::Regular, b"../escape", b""), "../escape");
    refused(&one(EntryType::Regular, b"usr/../../escape", b""), "usr/../../escape");
    refused(&one(EntryType::Link, b"inside", b"../../etc/shadow"), "inside");
    refused(&one(EntryType::Regular, b"usr/.wh...", b""), ".wh...");
}

#[test]
fn links_to_nothing_and_false_whiteouts_are_refused() {
    refused(&one(EntryType::Link, b"inside", b"etc/absent"), "inside");
    let device = |b: &mut tar::Builder<Vec<u8>>| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::Char);
        header.set_size(0);
        header.set_mode(0o600);
        header.set_device_major(0)?;
        header.set_device_minor(0)?;
        header.set_path("dev/forged")?;
        header.set_cksum();
        b.append(&header, &b""[..])
    };
    refused(&[Layer::plain(tar(device).unwrap())], "dev/forged");
}

#[test]
fn a_lying_diff_id_is_refused() {
    let mut layer = Layer::plain(tar(|b| raw_entry(b, EntryType::Regular, b"file", b"", b"data")).unwrap());
    layer.diff_id = archive::digest(b"something else");
    refused(&[layer], "diff ID");
}

#[test]
fn a_truncated_layer_is_refused() {
    let mut tar = tar(|b| raw_entry(b, EntryType::Regular, b"file", b"", &[7; 5000])).unwrap();
    tar.truncate(2048);
    refused(&[Layer::plain(tar)], "ends inside");
}

#[test]
fn thousands_of_layers_are_refused() {
    let layers: Vec<Layer> = (0..3000)
        .map(|i| {
            let name = format!("file-{i}");
            Layer::plain(tar(|b| raw_entry(b, EntryType::Regular, name.as_bytes(), b"", b"")).unwrap())
        })
        .collect();
    refused(&layers, "layers");
}

/// 64 GiB of zeros in a few MiB: a gzip file of many equal members, as the format allows.
#[test]
fn a_gzip_bomb_is_refused() {
    let zeros = vec![0u8; 64 << 20];
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    member.write_all(&zeros).unwrap();
    let member = member.finish().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_path("bomb").unwrap();
    header.set_mode(0o644);
    header.set_size(64 << 30);
    header.set_cksum();
    let mut first = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    first.write_all(header.as_bytes()).unwrap();
    let mut blob = first.finish().unwrap();
    for _ in 0..1024 {
        blob.extend_from_slice(&member);
    }
    let diff_id = archive::digest(b"never reached");
    refused(&[Layer { blob, diff_id }], "limit ratio");
}

#[test]
fn a_million_entries_stay_within_memory() {
    let lab = Lab::new().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("image.tar");
    let layer = tar(|b| {
        for i in 0..1_000_000u32 {
            raw_entry(b, EntryType::Regular, format!("d{:03}/f{i}", i % 997).as_bytes(), b"", b"")?;
        }
        Ok(())
    });
    docker_archive(&path, &[Layer::plain(layer.unwrap())]).unwrap();
    let (_, peak) = lab.run_watched(&["image", "import", "many", "-i", &path.to_string_lossy()]).unwrap();
    assert!(peak < MEMORY, "peak {} MiB", peak >> 20);
}
