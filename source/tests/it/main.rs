//! Sources against real servers: git's own over TLS, archives, artifacts, uploads; and archives that mean harm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod archives;
mod artifacts;
mod builds;
mod git;
mod hostile;
#[allow(dead_code, reason = "it is that of another room, which needs all of it")]
#[path = "../../../build/tests/buildkitd/lab.rs"]
mod lab;
mod server;
mod site;
mod ssh;
mod uploads;
