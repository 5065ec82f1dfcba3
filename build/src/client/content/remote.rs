//! A cache at a registry, brought here blob by blob as a build asks: of a large cache it needs little.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cloister_image::Digest;
use cloister_image::export::Blob;
use cloister_image::source::registry::RemoteCache;

/// A blob once it is here. While it is brought, whoever else wants it waits.
type Slot = Arc<Mutex<Option<Arc<Blob>>>>;

/// A cache to read. Clones share what was brought, which is gone with the last of them.
#[derive(Debug, Clone)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: RemoteCache,
    folder: PathBuf,
    slots: Mutex<BTreeMap<Digest, Slot>>,
}

impl Remote {
    /// Offers `cache`; what is brought stands in `folder`, under no name.
    pub fn new(cache: RemoteCache, folder: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner { cache, folder: folder.into(), slots: Mutex::default() }))
    }

    /// What to ask for first.
    pub fn top(&self) -> Digest {
        self.0.cache.top()
    }

    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        self.0.cache.size(digest)
    }

    /// Blocks while it is brought.
    pub(super) fn blob(&self, digest: &Digest) -> io::Result<Option<Arc<Blob>>> {
        let Some(size) = self.size(digest) else { return Ok(None) };
        let slot = {
            let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(*digest).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = &*slot {
            return Ok(Some(blob.clone()));
        }
        let mut file = tempfile::tempfile_in(&self.0.folder)?;
        self.0.cache.copy(digest, &mut file).map_err(io::Error::other)?;
        Ok(Some(slot.insert(Arc::new(Blob::part(file, 0, size))).clone()))
    }
}
