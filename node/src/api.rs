//! containerd's gRPC services and a part of the CRI, generated from `proto/`: two are served here, the others are called.
#![allow(clippy::all, rustdoc::all, unused_qualifications)]

mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use generated::containerd::services::{
    containers, content, diff, events, images, leases, snapshots, tasks,
};
pub use generated::containerd::types;
pub use generated::runtime::v1 as cri;
