//! emptyDirs: how large they are and what they are made of.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cloister_protocol::v1::{self, mount_volume_request};

use cloister_sandbox::Scratch;

use super::{Inner, Volumes, owner};
use crate::failure::{Failure, Result};

/// Pod annotations that give an emptyDir its size in bytes are called this and the volume's name.
const EMPTY_DIR_SIZE: &str = "cloister.dev/empty-dir.";
/// The disk of an emptyDir in its folder: there a kubelet looks for what the pod has written, and evicts it for too much.
const DISK: &str = ".cloister-disk";

/// The sizes of emptyDirs that a pod's annotations give.
pub fn sizes(annotations: &HashMap<String, String>) -> HashMap<String, u64> {
    let size = |(key, value): (&String, &String)| {
        let name = key.strip_prefix(EMPTY_DIR_SIZE)?;
        Some((name.to_owned(), quantity(value)?))
    };
    annotations.iter().filter_map(size).collect()
}

/// Bytes in Kubernetes' notation: a number with an optional binary or decimal suffix.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

impl Volumes {
    /// Where an emptyDir is in the guest; it is made at its first use.
    pub(super) async fn empty_dir(&self, inner: &mut Inner, folder: PathBuf) -> Result<String> {
        if let Some(guest) = inner.folders.get(&folder) {
            return Ok(guest.clone());
        }
        let (mode, gid) = owner(&folder)?;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let memory = tmpfs_size(&folder)
            .map_err(|error| Failure::Other(format!("cannot read {}: {error}", folder.display())))?;
        let kind = match memory {
            // Kubelet gives a volume without a limit half of the node's memory or all of it.
            Some(bytes) => mount_volume_request::Kind::Memory(v1::MemoryVolume {
                bytes: self.sizes.get(name).copied().unwrap_or(if bytes >= node_memory() / 2 {
                    0
                } else {
                    bytes
                }),
            }),
            None => {
                let bytes = self.sizes.get(name).copied().unwrap_or(self.empty_dir);
                let name = Some(folder.join(DISK));
                let scratch = Scratch { bytes, folder: self.disks.clone(), name };
                let serial = self.sandbox.plug_scratch(scratch).await?;
                mount_volume_request::Kind::Disk(v1::DiskVolume { serial, read_only: false })
            }
        };
        let id = format!("empty{}", Self::number(inner));
        let request = v1::MountVolumeRequest { id, kind: Some(kind), mode, gid };
        let guest = self.sandbox.while_alive(self.sandbox.agent().mount_volume(request)).await?;
        inner.folders.insert(folder, guest.clone());
        Ok(guest)
    }
}

/// Whether a folder is a tmpfs of its own, and its size in bytes then.
fn tmpfs_size(path: &Path) -> io::Result<Option<u64>> {
    /// `TMPFS_MAGIC` of linux/magic.h.
    const TMPFS: u64 = 0x0102_1994;
    let stat = rustix::fs::statfs(path)?;
    let own = std::fs::metadata(path)?.dev();
    let above = path.parent().map(std::fs::metadata).transpose()?.map(|meta| meta.dev());
    if u64::try_from(stat.f_type).unwrap_or_default() != TMPFS || above == Some(own) {
        return Ok(None);
    }
    Ok(Some(stat.f_blocks.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(4096))))
}

/// Bytes of memory of the node.
fn node_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_give_empty_dirs_their_size() {
        let map = HashMap::from([
            ("cloister.dev/empty-dir.cache".to_owned(), "64Mi".to_owned()),
            ("cloister.dev/empty-dir.bad".to_owned(), "lots".to_owned()),
            ("other".to_owned(), "1".to_owned()),
        ]);
        assert_eq!(sizes(&map), HashMap::from([("cache".to_owned(), 64 << 20)]));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(quantity("1000"), Some(1000));
        assert_eq!(quantity("2G"), Some(2_000_000_000));
        assert_eq!(quantity("1Ti"), Some(1 << 40));
        assert_eq!(quantity("99999999999Ti"), None);
        assert_eq!(quantity("1.5Gi"), None);
    }
}
