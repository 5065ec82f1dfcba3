//! Manifests, indexes and configs, as an import reads them. Seeds and the format of the input: `cloister_image::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cloister_image::fuzzing::manifest(data));
