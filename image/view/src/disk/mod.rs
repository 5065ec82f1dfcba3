//! One read-only block device out of many layer files, without copying them.
//!
//! A [`DiskLayout`] lists extents in order: `head`, then each layer file followed by `pad` zero bytes, then `tail`.
//! Together they are a disk with a GUID partition table whose partition *i* (counting from 1) is layer *i*, lowest
//! first. A VMM that can chain extents serves it as one device; every extent is a multiple of 512 bytes.

mod gpt;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cloister_layer::Digest;

use crate::error::{Error, Result};
use gpt::{Partition, SECTOR, Table};

/// Most layers on one disk: the kernel numbers partitions 1 to 255 (`DISK_MAX_PARTS`).
pub const MAX_PARTS: usize = 255;
/// Partitions start at multiples of 4 KiB: enough for page-sized reads that do not straddle.
pub const ALIGN_4K: u64 = 4096;
/// Partitions start at multiples of 1 MiB, as partitioning tools like it.
pub const ALIGN_1M: u64 = 1 << 20;

/// A layer file to put on the disk.
#[derive(Clone, Debug)]
pub struct Layer<S> {
    /// What the caller calls the file: a path, an index, a descriptor.
    pub source: S,
    /// Bytes of the file, a multiple of 512 and not 0.
    pub len: u64,
    /// The layer's diff ID; names the partition.
    pub diff_id: Digest,
}

/// A layer file on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<S> {
    /// What the caller calls the file.
    pub source: S,
    /// First sector of the partition.
    pub first_sector: u64,
    /// Bytes of the file, all of which belong to the partition.
    pub len: u64,
    /// Zero bytes after it, a multiple of 512, less than the alignment.
    pub pad: u64,
}

/// The extents of a disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLayout<S> {
    /// Protective MBR, GPT header and entries, zeros up to the first partition.
    pub head: Vec<u8>,
    /// Byte offset in `head` from which to its end everything is zero: at least as many bytes as any `pad`, so that
    /// pads can be mapped to it.
    pub zeros: usize,
    /// The layers, lowest first.
    pub parts: Vec<Part<S>>,
    /// Backup GPT entries and header.
    pub tail: Vec<u8>,
    /// Sectors of 512 bytes in all.
    pub total_sectors: u64,
}

/// Lays `layers`, lowest first, out on a disk with partitions aligned to `align` bytes, a power of two of at least
/// 512. The same layers give the same bytes.
///
/// # Errors
/// When there are no layers or more than [`MAX_PARTS`], a length is not a multiple of 512, or `align` is unfit.
pub fn layout<S>(layers: Vec<Layer<S>>, align: u64) -> Result<DiskLayout<S>> {
    if layers.is_empty() || layers.len() > MAX_PARTS {
        let count = layers.len();
        return Err(Error::Invalid(format!("cannot put {count} layers on one disk: 1 to {MAX_PARTS} fit")));
    }
    if !align.is_power_of_two() || !(SECTOR..=1 << 30).contains(&align) {
        return Err(Error::Invalid(format!("cannot align partitions to {align} bytes")));
    }
    let digests: Vec<_> = layers.iter().map(|l| l.diff_id).collect();
    let entry_sectors = gpt::entry_sectors(layers.len());
    let table_len = (2 + entry_sectors) * SECTOR;
    let head_len = (table_len + align).next_multiple_of(align);

    let mut position = head_len;
    let mut parts = Vec::with_capacity(layers.len());
    let mut partitions = Vec::with_capacity(layers.len());
    for (number, layer) in (1..).zip(layers) {
        let end = position.checked_add(layer.len).and_then(|end| end.checked_next_multiple_of(align));
        let (false, true, Some(end)) = (layer.len == 0, layer.len.is_multiple_of(SECTOR), end) else {
            let (id, len) = (layer.diff_id, layer.len);
            return Err(Error::Invalid(format!("layer {id}: a file of {len} bytes cannot be a partition")));
        };
        let (first, count) = (position / SECTOR, layer.len / SECTOR);
        partitions.push(Partition { first, count, guid: gpt::guid("layer", number, [layer.diff_id]) });
        let pad = end - position - layer.len;
        parts.push(Part { source: layer.source, first_sector: first, len: layer.len, pad });
        position = end;
    }

    // Whole pages for whoever maps the disk; the backup table has to be the very end.
    let backup = (entry_sectors + 1) * SECTOR;
    let tail_len = backup.next_multiple_of(ALIGN_4K);
    let total_sectors = (position + tail_len) / SECTOR;
    let disk = gpt::guid("disk", digests.len() as u64, digests);
    let table = Table { total: total_sectors, disk, partitions: &partitions };
    let mut head = table.head();
    head.resize(head_len as usize, 0);
    let mut tail = vec![0; (tail_len - backup) as usize];
    tail.extend_from_slice(&table.tail());
    Ok(DiskLayout { head, zeros: table_len as usize, parts, tail, total_sectors })
}

impl<S> DiskLayout<S> {
    /// Writes the whole disk into `out`, for tools that want one file; pads become holes. `open` gives the file of a
    /// part.
    ///
    /// # Errors
    /// When a layer file is shorter than it was, or reading or writing fails.
    pub fn write_to<'f>(&self, out: &File, mut open: impl FnMut(&S) -> io::Result<&'f File>) -> Result<()> {
        let failed = |e| Error::io("write the disk file", e);
        out.set_len(0).and_then(|()| out.set_len(self.total_sectors * SECTOR)).map_err(failed)?;
        out.write_all_at(&self.head, 0).map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        for part in &self.parts {
            let file = open(&part.source).map_err(|e| Error::io("open a layer file", e))?;
            let mut done = 0;
            while done < part.len {
                let now = (part.len - done).min(buffer.len() as u64) as usize;
                file.read_exact_at(&mut buffer[..now], done)
                    .map_err(|e| Error::io("read a layer file", e))?;
                out.write_all_at(&buffer[..now], part.first_sector * SECTOR + done).map_err(failed)?;
                done += now as u64;
            }
        }
        let end = self.total_sectors * SECTOR - self.tail.len() as u64;
        out.write_all_at(&self.tail, end).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(lengths: &[u64]) -> Vec<Layer<usize>> {
        let layer =
            |(source, len): (usize, &u64)| Layer { source, len: *len, diff_id: Digest::of(&[source as u8]) };
        lengths.iter().enumerate().map(layer).collect()
    }

    #[test]
    fn extents_are_whole_sectors_and_add_up() {
        for align in [512, ALIGN_4K, ALIGN_1M] {
            for count in [1, 2, 127, 128, 129, 255] {
                let lengths: Vec<u64> = (1..=count).map(|n| n * 512).collect();
                let disk = layout(layers(&lengths), align).unwrap();
                let mut position = disk.head.len() as u64;
                assert!(disk.head[disk.zeros..].iter().all(|b| *b == 0));
                for part in &disk.parts {
                    assert_eq!(part.first_sector * 512, position);
                    assert!(position.is_multiple_of(align) && part.pad.is_multiple_of(512));
                    assert!(part.pad < align && part.pad as usize <= disk.head.len() - disk.zeros);
                    position += part.len + part.pad;
                }
                assert_eq!(position + disk.tail.len() as u64, disk.total_sectors * 512);
                assert_eq!(disk, layout(layers(&lengths), align).unwrap());
            }
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        assert!(layout(layers(&[]), ALIGN_4K).is_err());
        assert!(layout(layers(&[512; 256]), ALIGN_4K).is_err());
        assert!(layout(layers(&[513]), ALIGN_4K).is_err());
        assert!(layout(layers(&[0]), ALIGN_4K).is_err());
        assert!(layout(layers(&[512]), 1000).is_err());
        assert!(layout(layers(&[u64::MAX / 512 * 512, 512]), ALIGN_4K).is_err());
    }
}
