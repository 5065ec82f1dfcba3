//! Length-delimited fsutil packets as a builder's tree: a whole tree in its place or nothing, and nothing beside it.
#![no_main]

use std::fs;
use std::path::Path;

use bollard_buildkit_proto::fsutil::types::Packet;
use cloister_build::fuzzing::output;
use cloister_build::output::Limits;
use libfuzzer_sys::fuzz_target;
use prost::Message;

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 64 };

fuzz_target!(|data: &[u8]| {
    // In memory where there is such a place: a disk would be the slowest part.
    let place =
        tempfile::Builder::new().tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
    let Ok(place) = place else { return };
    let mut left = data;
    let packets = std::iter::from_fn(|| {
        (!left.is_empty()).then(|| Packet::decode_length_delimited(&mut left).ok()).flatten()
    });
    let target = place.path().join("out");
    let received = output(&target, LIMITS, packets);
    let found: Vec<_> = fs::read_dir(place.path()).expect("readable").flatten().collect();
    assert_eq!(found.len(), usize::from(received.is_ok()), "{received:?}");
    if received.is_ok() {
        inside(&target, &target);
    }
});

/// All of a tree is files, folders and links that stay in it.
fn inside(folder: &Path, root: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("known");
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
        if kind.is_symlink() {
            assert!(
                entry.path().canonicalize().map_or(true, |to| to.starts_with(root)),
                "{:?}",
                entry.path()
            );
        } else if kind.is_dir() {
            inside(&entry.path(), root);
        }
    }
}
