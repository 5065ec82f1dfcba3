//! What the tests and benchmarks share: where the built parts are, a private store for each test, and a before/after
//! comparison of everything a microVM could leave behind.

pub mod archive;
pub mod bench;
pub mod cell;
pub mod cluster;
pub mod containerd;
pub mod cri;
pub mod host;
pub mod http;
pub mod installed;
pub mod lab;
pub mod metrics;
pub mod node;
pub mod oci_archive;
pub mod pod_images;
pub mod prometheus;
pub mod rig;
pub mod stats;
pub mod sweep;
pub mod systemd;
pub mod traces;

pub use cluster::Cluster;
pub use host::Leftovers;
pub use lab::Lab;
pub use rig::{Pod, Rig, run_case};
