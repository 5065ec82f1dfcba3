//! GUID partition tables. Source: UEFI specification 2.10, chapter 5; `block/partitions/efi.[ch]` (Linux 6.12).

use cloister_layer::Digest;
use cloister_layer::digest::Hasher;

/// Bytes per sector.
pub(super) const SECTOR: u64 = 512;
/// Bytes per partition entry.
const ENTRY: u64 = 128;
/// Entries a table has at least.
const MIN_ENTRIES: u64 = 128;
/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4 in its on-disk byte order.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
/// Attribute bit 60: mount read-only.
const READ_ONLY: u64 = 1 << 60;

/// A partition: sectors and the GUID that names it.
pub(super) struct Partition {
    pub first: u64,
    pub count: u64,
    pub guid: [u8; 16],
}

/// Number of entries for so many partitions, filling whole sectors.
fn entries(partitions: usize) -> u64 {
    (partitions as u64).next_multiple_of(SECTOR / ENTRY).max(MIN_ENTRIES)
}

/// Sectors one copy of the entries takes.
pub(super) fn entry_sectors(partitions: usize) -> u64 {
    entries(partitions) * ENTRY / SECTOR
}

/// A table over a disk of `total` sectors.
pub(super) struct Table<'a> {
    pub total: u64,
    pub disk: [u8; 16],
    pub partitions: &'a [Partition],
}

impl Table<'_> {
    /// Protective MBR, header and entries: the first `2 + entry_sectors` sectors.
    pub fn head(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut head = self.protective_mbr().to_vec();
        head.extend_from_slice(&self.header(&entries, 1, self.total - 1, 2));
        head.extend_from_slice(&entries);
        head
    }

    /// Entries and header again: the last `entry_sectors + 1` sectors.
    pub fn tail(&self) -> Vec<u8> {
        let mut tail = self.entries();
        let first = self.total - 1 - tail.len() as u64 / SECTOR;
        let header = self.header(&tail, self.total - 1, 1, first);
        tail.extend_from_slice(&header);
        tail
    }

    fn entries(&self) -> Vec<u8> {
        let mut all = vec![0; (entries(self.partitions.len()) * ENTRY) as usize];
        let slots = all.chunks_exact_mut(ENTRY as usize);
        for (number, (partition, slot)) in (1u32..).zip(self.partitions.iter().zip(slots)) {
            slot[..16].copy_from_slice(&LINUX_DATA);
            slot[16..32].copy_from_slice(&partition.guid);
            slot[32..40].copy_from_slice(&partition.first.to_le_bytes());
            slot[40..48].copy_from_slice(&(partition.first + partition.count - 1).to_le_bytes());
            slot[48..56].copy_from_slice(&READ_ONLY.to_le_bytes());
            for (unit, at) in format!("layer {number}").encode_utf16().zip(slot[56..].chunks_exact_mut(2)) {
                at.copy_from_slice(&unit.to_le_bytes());
            }
        }
        all
    }

    fn header(&self, entries: &[u8], at: u64, other: u64, entries_at: u64) -> [u8; SECTOR as usize] {
        let sectors = entries.len() as u64 / SECTOR;
        let mut h = [0; SECTOR as usize];
        h[..8].copy_from_slice(b"EFI PART");
        h[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        h[12..16].copy_from_slice(&92u32.to_le_bytes());
        h[24..32].copy_from_slice(&at.to_le_bytes());
        h[32..40].copy_from_slice(&other.to_le_bytes());
        h[40..48].copy_from_slice(&(2 + sectors).to_le_bytes());
        h[48..56].copy_from_slice(&(self.total - 2 - sectors).to_le_bytes());
        h[56..72].copy_from_slice(&self.disk);
        h[72..80].copy_from_slice(&entries_at.to_le_bytes());
        h[80..84].copy_from_slice(&(entries.len() as u32 / ENTRY as u32).to_le_bytes());
        h[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        h[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        let crc = crc32(&h[..92]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    }

    fn protective_mbr(&self) -> [u8; SECTOR as usize] {
        let mut mbr = [0; SECTOR as usize];
        let size = u32::try_from(self.total - 1).unwrap_or(u32::MAX);
        // One partition of type 0xEE from sector 1 to the end; the cylinder numbers mean nothing.
        mbr[446..458].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
        mbr[458..462].copy_from_slice(&size.to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        mbr
    }
}

/// A GUID (RFC 9562 version 8) from what it names: the same for the same inputs.
pub(super) fn guid(domain: &str, number: u64, digests: impl IntoIterator<Item = Digest>) -> [u8; 16] {
    let mut hasher = Hasher::new();
    hasher.update(b"cloister disk 1\0");
    hasher.update(domain.as_bytes());
    hasher.update(&number.to_le_bytes());
    for digest in digests {
        hasher.update(&digest.0);
    }
    let mut guid = [0; 16];
    guid.copy_from_slice(&hasher.finish().0[..16]);
    // On disk the third group is little-endian: its version digit stands in byte 7.
    guid[7] = guid[7] & 0x0f | 0x80;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

/// CRC-32 (IEEE 802.3, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| c >> 1 ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_matches_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn tables_grow_beyond_128_entries_in_whole_sectors() {
        assert_eq!(entry_sectors(1), 32);
        assert_eq!(entry_sectors(128), 32);
        assert_eq!(entry_sectors(129), 33);
        assert_eq!(entry_sectors(255), 64);
    }

    #[test]
    fn guids_tell_equal_layers_at_different_places_apart() {
        let digest = Digest::of(b"layer");
        assert_ne!(guid("layer", 1, [digest]), guid("layer", 2, [digest]));
        assert_eq!(guid("layer", 1, [digest]), guid("layer", 1, [digest]));
    }
}
