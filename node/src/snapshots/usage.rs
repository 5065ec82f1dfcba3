//! What a snapshot takes on disk.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cloister_image::Store;
use cloister_layer::erofs::format::{SUPER_OFFSET, SUPER_SIZE, SuperBlock};

use super::record::Kind;
use super::state::Found;
use crate::error::{IoContext, Result};

/// Bytes and inodes of a snapshot's own, without what it stands on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The disk of what a microVM's container writes; its shim makes it.
const SCRATCH: &str = "scratch";

/// Measures a snapshot: the file system of a layer, or what a container wrote, on the host or to its disk in a microVM.
pub fn of(store: &Store, found: &Found) -> Result<Usage> {
    if found.record.kind == Kind::Committed {
        let Some(layer) = found.record.layer.and_then(|layer| store.open_layer(&layer).transpose()) else {
            return Ok(Usage::default());
        };
        let layer = layer?;
        let mut head = [0; SUPER_SIZE];
        std::os::unix::fs::FileExt::read_exact_at(&layer.file, &mut head, SUPER_OFFSET)
            .at("read", &layer.path)?;
        let inodes = SuperBlock::decode(&head).map_or(0, |sb| sb.inodes);
        return Ok(Usage { bytes: layer.size, inodes });
    }
    let (host, disk) = (tree(found.dir.join("fs"))?, tree(found.dir.join(SCRATCH))?);
    Ok(Usage { bytes: host.bytes + disk.bytes, inodes: host.inodes + disk.inodes })
}

/// Disk blocks below `root`; a file with several names counts once. What vanishes meanwhile does not count.
fn tree(root: PathBuf) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut ahead = vec![root];
    while let Some(path) = ahead.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.bytes += meta.blocks() * 512;
        usage.inodes += 1;
        if meta.is_dir() {
            ahead.extend(children(&path));
        }
    }
    Ok(usage)
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
