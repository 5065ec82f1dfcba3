//! Any bytes as the archive of a build's source: nothing is made beside the folder, and no device in it. Header checksums
//! are repaired first, or the fuzzer would hardly get past them.
#![no_main]

use std::fs;
use std::path::Path;
use std::time::Duration;

use cloister_image::source::registry::Reach;
use cloister_source::Limits;
use cloister_source::fuzzing::unpack;
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    packed: 1 << 20,
    bytes: 1 << 20,
    entries: 64,
    time: Duration::from_secs(10),
    plain_http: false,
    reach: Reach::BeyondHost,
};

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    for block in bytes.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    // In memory where there is such a place: a disk would be the slowest part.
    let place =
        tempfile::Builder::new().tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
    let Ok(place) = place else { return };
    let root = place.path().join("root");
    fs::create_dir(&root).expect("made");
    let _ = unpack(&bytes, first & 1 == 1, &root, &LIMITS);
    assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 1);
    inside(&root);
});

/// All of a tree is files, folders and links.
fn inside(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("known");
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{:?}", entry.path());
        if kind.is_dir() {
            inside(&entry.path());
        }
    }
}
