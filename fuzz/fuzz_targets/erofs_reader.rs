//! Any bytes as an EROFS file: reading everything in it ends soon, with a tree or with an error.
#![no_main]

use std::fs::File;
use std::io::Write;

use cloister_view::merged::{Limits, Merged};
use cloister_view::reader::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(fd) = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let mut file = File::from(fd);
    if file.write_all(bytes).is_err() {
        return;
    }
    let Ok(other) = file.try_clone() else { return };
    let (Ok(low), Ok(high)) = (Image::open(file, "low"), Image::open(other, "high")) else { return };
    let limits = Limits { entries: 10_000, data_bytes: 4 << 20 };
    if let Ok(tree) = Merged::new(vec![low, high]) {
        let _ = cloister_view::tar::write(std::io::sink(), &tree, limits);
    }
});
