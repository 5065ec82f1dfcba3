//! What other nodes may have: the blobs of images that builds made, nothing else that containerd holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_image::{BlobRef, Digest};
use tonic::Streaming;

use crate::api::content::v1::ReadContentResponse;
use crate::containerd::scope::Scope;
use crate::containerd::{CRI, Containerd};
use crate::error::{Error, Result};
use crate::import::record::{BUILD, Record};
use crate::import::walk;

/// Images whose blobs are remembered.
const MAX_KNOWN: usize = 64;

/// Sizes of an image's blobs.
type Sizes = Arc<BTreeMap<Digest, u64>>;

/// The images of this node's builds.
#[derive(Debug)]
pub struct Shared {
    containerd: Containerd,
    scope: Scope,
    known: Mutex<HashMap<Digest, Sizes>>,
}

impl Shared {
    /// Those in this containerd.
    pub fn new(containerd: Containerd) -> Self {
        Self { scope: Scope::new(containerd.clone()), containerd, known: Mutex::default() }
    }

    /// The image with this digest, if a build made it.
    pub async fn image(&self, digest: &Digest) -> Result<BlobRef> {
        let leases = self.scope.leases_labelled(BUILD).await?;
        let found = leases.iter().filter_map(Record::of).find(|record| record.top.digest == *digest);
        found.map(|record| record.top).ok_or_else(|| Error::NotFound(format!("image {digest} of a build")))
    }

    /// The size of a blob, if it belongs to the image.
    pub async fn size(&self, image: &Digest, blob: &Digest) -> Result<u64> {
        let top = self.image(image).await?;
        let known = self.known().get(image).cloned();
        let sizes = match known {
            Some(sizes) => sizes,
            None => {
                let whole = walk::walk(&self.scope, &top).await?;
                let whole = whole.map_err(|blob| Error::NotFound(format!("blob {}", blob.digest)))?;
                let sizes = Arc::new(whole.blobs);
                let mut known = self.known();
                if known.len() >= MAX_KNOWN {
                    known.clear();
                }
                known.insert(*image, sizes.clone());
                sizes
            }
        };
        let size = sizes.get(blob).copied();
        size.ok_or_else(|| Error::NotFound(format!("blob {blob} of image {image}")))
    }

    /// A blob from the byte `offset`.
    pub async fn read(&self, blob: &Digest, offset: u64) -> Result<Streaming<ReadContentResponse>> {
        self.containerd.read_from(CRI, &blob.to_string(), offset).await
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Sizes>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
