//! containerd's content service on the session: how buildkitd reads base images and caches from our side, and writes
//! caches and results to it. A call names its store in a header and reaches nothing but that store.

mod layout;
mod offer;
mod remote;
mod service;
mod write;

#[allow(missing_docs, clippy::all)]
mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.content.v1.rs"));
}

use std::io;
use std::sync::Arc;

use cloister_image::Digest;
use cloister_image::export::Blob;

pub use layout::Layout;
pub use offer::Offer;
pub use remote::Remote;
pub(super) use service::ContentService;

/// A store that a session offers.
#[derive(Debug, Clone)]
pub enum ContentStore {
    /// A fixed set of blobs to read.
    Offer(Offer),
    /// A folder to read and to write.
    Layout(Layout),
    /// A cache to read that is elsewhere.
    Remote(Remote),
}

impl From<Offer> for ContentStore {
    fn from(offer: Offer) -> Self {
        Self::Offer(offer)
    }
}

impl From<Layout> for ContentStore {
    fn from(layout: Layout) -> Self {
        Self::Layout(layout)
    }
}

impl From<Remote> for ContentStore {
    fn from(remote: Remote) -> Self {
        Self::Remote(remote)
    }
}

impl ContentStore {
    /// How long the blob with this digest is, in bytes; `None` when the store has none.
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match self {
            Self::Remote(remote) => Ok(remote.size(digest)),
            _ => Ok(self.blob(digest)?.map(|blob| blob.size())),
        }
    }

    /// The blob with this digest; `None` when the store has none. Blocks.
    fn blob(&self, digest: &Digest) -> io::Result<Option<Arc<Blob>>> {
        match self {
            Self::Offer(offer) => Ok(offer.blob(digest)),
            Self::Layout(layout) => layout.blob(digest),
            Self::Remote(remote) => remote.blob(digest),
        }
    }
}
