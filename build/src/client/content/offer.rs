//! Blobs for a build to read: images of the node-local store, so that a build without a network has its base images.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_image::export::{Blob, Blobs, blobs};
use cloister_image::{Digest, Image, Store};

use crate::client::error::Result;

/// A fixed set of blobs. They are held in their store for as long as a clone of this value lives.
#[derive(Debug, Clone, Default)]
pub struct Offer(Arc<BTreeMap<Digest, Arc<Blob>>>);

impl Offer {
    /// Everything that `image` is made of, and the digest of the manifest to ask for.
    pub fn image(store: &Store, image: &Image) -> Result<(Self, Digest)> {
        Ok(Self::blobs(blobs(store, image)?))
    }

    /// The blobs of one image, and the digest of the manifest to ask for.
    pub fn blobs(found: Blobs) -> (Self, Digest) {
        let blobs = found.blobs.into_iter().map(|(digest, blob)| (digest, Arc::new(blob)));
        (Self(Arc::new(blobs.collect())), found.manifest)
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<Arc<Blob>> {
        self.0.get(digest).cloned()
    }
}
