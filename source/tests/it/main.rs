//! Sources against real servers: git's own over TLS, archives, artifacts, uploads; and archives that mean harm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod archives;
mod artifacts;
mod git;
mod hostile;
mod server;
mod site;
mod ssh;
mod uploads;
