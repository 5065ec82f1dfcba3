//! Virtio disks, found by the serial that the host gave them.

use std::fs;
use std::path::{Path, PathBuf};

use super::uevent::wait_for;
use crate::error::{Context, Result};

/// The device node of the disk with `serial`, waiting for it to be plugged.
///
/// # Errors
/// When it does not appear in time.
pub fn by_serial(serial: &str) -> Result<PathBuf> {
    wait_for(&format!("disk with serial {serial:?}"), || match find(Path::new("/sys/block"), serial)? {
        Some(node) => Ok(usable(&node)?.then_some(node)),
        None => Ok(None),
    })
}

/// The nodes of partitions 1..=`count` of a disk, waiting for the kernel to read its table.
///
/// # Errors
/// When one does not appear in time.
pub fn partitions(disk: &Path, count: u32) -> Result<Vec<PathBuf>> {
    (1..=count)
        .map(|number| {
            let node = partition(disk, number);
            wait_for(&format!("partition {}", node.display()), || Ok(usable(&node)?.then(|| node.clone())))
        })
        .collect()
}

/// Whether a node can be opened: the kernel makes it a moment before the device behind it (`add_partition()` in
/// block/partitions/core.c), and announces the device after both.
fn usable(node: &Path) -> Result<bool> {
    match fs::File::open(node) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => Ok(false),
        Err(e) => Err(e).context(|| format!("open {}", node.display())),
    }
}

/// `/dev/vda` + 1 is `/dev/vda1`; a name that ends in a digit gets a `p` between (`disk_name()` in block/genhd.c).
fn partition(disk: &Path, number: u32) -> PathBuf {
    let name = disk.to_string_lossy();
    let between = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    PathBuf::from(format!("{name}{between}{number}"))
}

fn find(block: &Path, serial: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(block).context(|| format!("list {}", block.display()))?;
    for entry in entries.flatten() {
        let Ok(seen) = fs::read_to_string(entry.path().join("serial")) else { continue };
        if seen.trim_end_matches(['\n', '\0']) == serial {
            let node = Path::new("/dev").join(entry.file_name());
            return Ok(Some(node));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(partition(Path::new("/dev/vda"), 12), Path::new("/dev/vda12"));
        assert_eq!(partition(Path::new("/dev/pmem0"), 1), Path::new("/dev/pmem0p1"));
    }

    #[test]
    fn a_disk_is_found_by_its_whole_serial() {
        let block = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", "img1\n"), ("vdb", "img10"), ("loop0", "")] {
            fs::create_dir(block.path().join(disk)).unwrap();
            fs::write(block.path().join(disk).join("serial"), serial).unwrap();
        }
        fs::create_dir(block.path().join("ram0")).unwrap();
        assert_eq!(find(block.path(), "img1").unwrap(), Some("/dev/vda".into()));
        assert_eq!(find(block.path(), "img10").unwrap(), Some("/dev/vdb".into()));
        assert_eq!(find(block.path(), "img").unwrap(), None);
    }
}
