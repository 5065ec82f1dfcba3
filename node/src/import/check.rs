//! What of the images of builds is here, without changing any of it.

use super::record::{BUILD, Record};
use super::{Importer, kubelet, names, settle, walk};
use crate::containerd::images::Named;
use crate::error::Result;

impl Importer {
    /// Waits until an image reference is removed or changed.
    ///
    /// # Errors
    /// When containerd cannot be asked.
    pub async fn removal(&self) -> Result<()> {
        self.scope.image_event().await
    }

    /// All references that are a build's: one call for all builds.
    pub async fn references(&self) -> Result<Vec<Named>> {
        self.scope.images_with(BUILD).await
    }

    /// Whether everything of a record's image is here, and the CRI knows it. It reads manifests and asks for each blob
    /// and snapshot.
    ///
    /// # Errors
    /// When containerd cannot be asked.
    pub async fn is_complete(&self, record: &Record) -> Result<bool> {
        let Ok(whole) = walk::walk(&self.scope, &record.top).await? else { return Ok(false) };
        if self.missing_blob(&whole).await?.is_some() || !self.is_settled(record, &whole).await? {
            return Ok(false);
        }
        let id = walk::ours(&whole)?.config.digest.to_string();
        for name in names::spellings(&record.names, &record.top.digest) {
            let image = self.scope.cri_image(&name).await?;
            if image.is_none_or(|image| image.id != id || (record.pin && !image.pinned)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Why the kubelet may not run an image although it is here, in one line.
    pub fn objection(&self) -> Option<String> {
        kubelet::objection(&self.kubelet)
    }
}

/// Whether all references of a record are among these.
pub fn is_referenced(record: &Record, all: &[Named]) -> bool {
    let right =
        |name: &String| all.iter().any(|named| named.name == *name && settle::is_right(named, record));
    names::references(&record.names, &record.top.digest).iter().all(right)
}
