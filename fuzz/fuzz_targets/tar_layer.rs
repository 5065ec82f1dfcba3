//! Any bytes as a layer blob, through the whole conversion into a memfd. Header checksums are repaired first, or the
//! fuzzer would hardly get past them.
#![no_main]

use std::fs::File;

use cloister_layer::{Expected, Limits, convert};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut blob = bytes.to_vec();
    for block in blob.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let Ok(fd) = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let limits = Limits { uncompressed_bytes: 8 << 20, metadata_bytes: 8 << 20, ..Limits::default() };
    let _ = convert(&blob[..], &Expected::default(), &File::from(fd), &limits, &|_| {});
});
