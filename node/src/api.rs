//! containerd's gRPC services, generated from `proto/`: two are served here, two are called.
#![allow(clippy::all, rustdoc::all, unused_qualifications)]

mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use generated::containerd::services::{containers, content, diff, snapshots};
pub use generated::containerd::types;
