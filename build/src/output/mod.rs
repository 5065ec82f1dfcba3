//! What BuildKit sends back as files: one stream of bytes (`tar`, `oci`, `docker`) or a tree (`local`). All of it is a
//! guest's, and hostile.

mod error;
mod service;
mod staging;
mod stale;
mod stream;
mod target;
mod tree;

pub use error::OutputError;
pub use service::{FileSendServer, FileSendService};
pub(crate) use staging::Staging;
pub use target::{Limits, Output, Receipt, Received};
pub(crate) use tree::Receiver;
