//! Images of builds from node to node: HTTPS with a certificate on both sides, blobs by digest.

pub mod body;
pub mod client;
mod connection;
pub mod server;
mod shared;
pub mod tls;

use cloister_image::{BlobRef, Digest};
use serde::{Deserialize, Serialize};

/// What a node says of an image: `GET /v1/images/DIGEST`. Its blobs are below `/v1/images/DIGEST/blobs/`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

impl From<BlobRef> for Descriptor {
    fn from(blob: BlobRef) -> Self {
        Self { media_type: blob.media_type, digest: blob.digest, size: blob.size }
    }
}

impl From<Descriptor> for BlobRef {
    fn from(said: Descriptor) -> Self {
        Self { digest: said.digest, size: said.size, media_type: said.media_type }
    }
}
