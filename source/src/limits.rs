//! What a source may cost the node.

use std::time::Duration;

use cloister_image::source::registry::Reach;

/// Bounds on one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes as they are downloaded or uploaded.
    pub packed: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Until the source is there.
    pub time: Duration,
    /// Take `http://` too. Only archives: their bytes have a checksum, and no credentials are sent.
    pub plain_http: bool,
    /// Which servers are asked. Who writes a source is a tenant, who asks for it is the node.
    pub reach: Reach,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packed: 4 << 30,
            bytes: 8 << 30,
            entries: 500_000,
            time: Duration::from_secs(1800),
            plain_http: false,
            reach: Reach::BeyondHost,
        }
    }
}
