//! The device in a real VM: QEMU under software emulation, Linux, and a guest program that tries what broke other devices.
//!
//! Every test boots its own VM (about a second). They need QEMU 10 and the guest kernel in the cache. What only a guest without a
//! kernel can do, lying in header fields and descriptors, is tested in the crate itself on queues in plain memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cpio;
mod load;
mod machine;
mod states;
mod wire;
