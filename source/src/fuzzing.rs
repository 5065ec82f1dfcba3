//! An entry for fuzzers: archives without a source.

use std::path::Path;

use crate::archive::{self, Kind};
use crate::folder::Folder;
use crate::watch::Watch;
use crate::{Limits, Result};

/// Unpacks `bytes` into the empty folder `root`, as an archive or as a layer of an image.
///
/// # Errors
/// What is wrong with the archive.
pub fn unpack(bytes: &[u8], layer: bool, root: &Path, limits: &Limits) -> Result<()> {
    let watch = Watch::new(limits.time);
    let work = root.parent().unwrap_or(root);
    let tar = archive::plain("the archive", bytes, work, limits, &watch)?;
    let mut folder = Folder::new("the archive", root, limits)?;
    let kind = if layer { Kind::Layer } else { Kind::Archive };
    archive::unpack(&tar, kind, &mut folder, b"", &watch)?;
    folder.end()
}
