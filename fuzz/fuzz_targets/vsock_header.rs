//! A vsock guest and host programs that do anything, in any order, with headers and descriptor chains of any content.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| cloister_vsock::harness::run_script(script));
