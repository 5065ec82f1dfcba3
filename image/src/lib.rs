//! OCI reference to verified blobs to one read-only filesystem per layer to a bootable disk; the node-local store.
//!
//! Everything here blocks; long work runs on scoped threads that end before the call returns.

pub mod base64;
pub mod config;
pub mod error;
pub mod export;
#[doc(hidden)]
pub mod fuzzing;
pub mod import;
mod limits;
mod oci;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod source;
pub mod store;
pub mod tree;

pub use cloister_layer::digest::Digest;
pub use config::ImageConfig;
pub use error::{Error, Result};
pub use limits::Limits;
pub use oci::BlobRef;
pub use platform::Platform;
pub use progress::{LayerProgress, Phase, Progress, Silent};
pub use reference::Reference;
pub use store::{Image, ImageRecord, LayerFile, LayerRecord, Pin, PruneReport, Store, Usage};
pub use tree::{Node, Runnable, Tree, Whole};
