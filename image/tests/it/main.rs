//! The room as its users see it, with real archives, a real registry and real processes. One binary, so that it links once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archives;
mod common;
mod crash;
mod exports;
mod hostile;
mod push;
mod registry;
mod store;
mod upstream;
