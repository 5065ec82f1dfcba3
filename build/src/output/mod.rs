//! What BuildKit sends back as files: one stream of bytes (`tar`, `oci`, `docker`) or a tree (`local`). All of it is a
//! guest's, and hostile.

mod service;
mod target;

pub use service::{FileSendServer, FileSendService};
pub use target::{Limits, Output, OutputError, Receipt, Received};
