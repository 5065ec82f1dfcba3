//! What the tests and benchmarks share: where the built parts are, a private store for each test, and a before/after
//! comparison of everything a microVM could leave behind.

pub mod archive;
pub mod bench;
pub mod host;
pub mod lab;
pub mod stats;

pub use host::Leftovers;
pub use lab::Lab;
