//! This room against the kernel and the usual tools. Needs root: loop mounts, device nodes, overlayfs.
//!
//! Every test that mounts does so in a mount namespace of its own thread, which ends with the test.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod disk;
mod erofs;
mod ext4;
mod hostile;
mod merged;
mod reader;
mod scratch;
mod support;
mod tar;
