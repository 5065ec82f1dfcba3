//! Extended attributes: first into the inode, what does not fit into one block.
//! Source: `Documentation/filesystems/ext4/attributes.rst` and `fs/ext4/{xattr,acl}.[ch]` (6.12).

use super::inode::INLINE_XATTR_BYTES;
use super::layout::{BLOCK, put16, put32};
use crate::reader::Xattr;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
/// Four zero bytes end a list of entries.
const END: usize = 4;

/// Attributes as they go to disk.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    /// The in-inode area, zeros if unused.
    pub inline: [u8; INLINE_XATTR_BYTES],
    /// The attribute block, if one is needed.
    pub block: Option<Box<[u8; BLOCK as usize]>>,
}

struct Entry {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Lays out `xattrs`.
///
/// # Errors
/// Says in words which attribute cannot be held.
pub(crate) fn encode(xattrs: &[Xattr]) -> Result<Encoded, String> {
    let mut encoded = Encoded { inline: [0; INLINE_XATTR_BYTES], block: None };
    if xattrs.is_empty() {
        return Ok(encoded);
    }
    let mut entries = xattrs.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    // The order in which the kernel searches a block.
    entries.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));

    let mut room = INLINE_XATTR_BYTES - 4 - END;
    let (inline, outside): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| {
        let fits = size(e) <= room;
        room -= if fits { size(e) } else { 0 };
        fits
    });
    if !inline.is_empty() {
        put32(&mut encoded.inline, 0, MAGIC);
        // Value positions count from the first entry.
        fill(&mut encoded.inline[4..], 0, &inline);
    }
    if !outside.is_empty() {
        let needed: usize = outside.iter().map(size).sum();
        if needed > BLOCK as usize - BLOCK_HEADER - END {
            return Err(format!("{needed} bytes of extended attributes do not fit into one block"));
        }
        let mut block = Box::new([0; BLOCK as usize]);
        put32(&mut block[..], 0, MAGIC);
        put32(&mut block[..], 4, 1); // references
        put32(&mut block[..], 8, 1); // blocks
        put32(&mut block[..], 12, outside.iter().fold(0, |sum: u32, e| sum.rotate_left(16) ^ hash(e)));
        fill(&mut block[..], BLOCK_HEADER, &outside);
        encoded.block = Some(block);
    }
    Ok(encoded)
}

/// Writes entries from `start` upwards and their values from the end of `area` downwards.
fn fill(area: &mut [u8], start: usize, entries: &[Entry]) {
    let (mut at, mut values) = (start, area.len());
    for entry in entries {
        values -= entry.value.len().next_multiple_of(4);
        area[at] = entry.name.len() as u8;
        area[at + 1] = entry.index;
        put16(area, at + 2, if entry.value.is_empty() { 0 } else { values as u16 });
        put32(area, at + 8, entry.value.len() as u32);
        put32(area, at + 12, hash(entry));
        area[at + ENTRY_HEADER..at + ENTRY_HEADER + entry.name.len()].copy_from_slice(&entry.name);
        area[values..values + entry.value.len()].copy_from_slice(&entry.value);
        at += (ENTRY_HEADER + entry.name.len()).next_multiple_of(4);
    }
}

fn size(entry: &Entry) -> usize {
    (ENTRY_HEADER + entry.name.len()).next_multiple_of(4) + entry.value.len().next_multiple_of(4)
}

/// `ext4_xattr_hash_entry`, with names taken as unsigned bytes.
fn hash(entry: &Entry) -> u32 {
    let name = entry.name.iter().fold(0u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
    entry.value.chunks(4).fold(name, |sum, word| {
        let word = word.iter().rev().fold(0, |w, byte| w << 8 | u32::from(*byte));
        sum.rotate_left(16) ^ word
    })
}

fn entry(xattr: &Xattr) -> Result<Entry, String> {
    let printable = || String::from_utf8_lossy(&xattr.name).into_owned();
    for (index, acl) in [(2, &b"system.posix_acl_access"[..]), (3, b"system.posix_acl_default")] {
        if xattr.name == acl {
            let value =
                acl_value(&xattr.value).ok_or_else(|| format!("{} is not a valid ACL", printable()))?;
            return Ok(Entry { index, name: Vec::new(), value });
        }
    }
    for (index, prefix) in [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")] {
        if let Some(name) = xattr.name.strip_prefix(prefix) {
            return Ok(Entry { index, name: name.to_vec(), value: xattr.value.clone() });
        }
    }
    Err(format!("ext4 has no place for the attribute {}", printable()))
}

/// From the form `getxattr` shows (version 2, eight bytes per entry) to ext4's own (version 1, without the id
/// where there is none).
fn acl_value(value: &[u8]) -> Option<Vec<u8>> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    if entries.len() % 8 != 0 {
        return None;
    }
    let mut own = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        match (entry[0], entry[1]) {
            // A named user or group.
            (2 | 8, 0) => own.extend_from_slice(entry),
            // Owner, group, mask, others.
            (1 | 4 | 16 | 32, 0) => own.extend_from_slice(&entry[..4]),
            _ => return None,
        }
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    #[test]
    fn file_capabilities_fit_into_the_inode() {
        let encoded = encode(&[xattr("security.capability", &[1; 20])]).unwrap();
        assert!(encoded.block.is_none());
        assert_eq!(encoded.inline[..4], MAGIC.to_le_bytes());
        assert_eq!(encoded.inline[4..6], [10, 6]);
    }

    #[test]
    fn what_does_not_fit_goes_to_the_block_and_no_further() {
        let encoded = encode(&[xattr("user.a", &[1; 20]), xattr("user.b", &[2; 3000])]).unwrap();
        assert!(encoded.block.is_some());
        let error = encode(&[xattr("user.b", &[2; 4096])]).unwrap_err();
        assert!(error.contains("4116 bytes"), "{error}");
        assert!(encode(&[xattr("system.nfs4_acl", b"x")]).is_err());
    }

    #[test]
    fn acls_lose_the_ids_that_mean_nothing() {
        let wire = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0];
        assert_eq!(acl_value(&wire).unwrap(), [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 232, 3, 0, 0]);
        assert_eq!(acl_value(&wire[..7]), None);
        assert_eq!(acl_value(&[2, 0, 0, 0, 3, 0, 6, 0, 0, 0, 0, 0]), None);
    }
}
