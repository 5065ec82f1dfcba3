//! The first 4 KiB of the file: a record of our own, where boot code would be, and the superblock.
//!
//! The record says where the layer's tar stands in the file, bit by bit, so that the layer can be exported and verified
//! again: 8 bytes magic with the version, u64 offset, u64 length, 32 bytes diff ID, u32 CRC-32C of those 56 bytes; all
//! little-endian. EROFS leaves these 1024 bytes to others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{self, SUPER_OFFSET, SUPER_SIZE, SuperBlock};
use crate::digest::{Digest, Hasher};

/// Bytes before the data.
pub(super) const HEAD_SIZE: u64 = 4096;
const MAGIC: &[u8; 8] = b"CLSTLYR\x01";
const RECORD: usize = 60;

/// Where the tar of a layer stands in its EROFS file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// SHA-256 of those bytes, as verified when the file was written. Hash again before trusting a stored file.
    pub diff_id: Digest,
}

/// What tells one volume from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Volume UUID.
    pub uuid: [u8; 16],
    /// The layer's tar, if the file holds one.
    pub tar: Option<TarRange>,
}

impl Identity {
    /// A UUID (RFC 9562 version 8) from a digest: equal content, equal UUID.
    pub fn uuid_for(digest: &Digest) -> [u8; 16] {
        let mut hasher = Hasher::new();
        hasher.update(b"cloister erofs volume 1\0");
        hasher.update(&digest.0);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hasher.finish().0[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    pub(super) fn encode(&self, mut superblock: SuperBlock) -> Vec<u8> {
        let mut head = vec![0; HEAD_SIZE as usize];
        if let Some(tar) = &self.tar {
            head[..8].copy_from_slice(MAGIC);
            head[8..16].copy_from_slice(&tar.offset.to_le_bytes());
            head[16..24].copy_from_slice(&tar.len.to_le_bytes());
            head[24..56].copy_from_slice(&tar.diff_id.0);
            let crc = format::crc32c(!0, &head[..56]);
            head[56..RECORD].copy_from_slice(&crc.to_le_bytes());
        }
        let at = SUPER_OFFSET as usize;
        superblock.uuid = self.uuid;
        head[at..at + SUPER_SIZE].copy_from_slice(&superblock.encode());
        head
    }
}

/// Where the tar stands in an EROFS file written by this crate; `None` if the file has no such record or it is damaged
/// or reaches beyond the file.
///
/// # Errors
/// The file cannot be read.
pub fn tar_range(file: &File) -> io::Result<Option<TarRange>> {
    let size = file.metadata()?.len();
    let mut record = [0; RECORD];
    if size < HEAD_SIZE {
        return Ok(None);
    }
    file.read_exact_at(&mut record, 0)?;
    let (body, crc) = record.split_at(56);
    if !body.starts_with(MAGIC) || crc != format::crc32c(!0, body).to_le_bytes() {
        return Ok(None);
    }
    let number = |at: usize| body[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (offset, len) = (number(8), number(16));
    let mut diff_id = Digest([0; 32]);
    diff_id.0.copy_from_slice(&body[24..]);
    let inside = offset >= HEAD_SIZE && offset.checked_add(len).is_some_and(|end| end <= size);
    Ok(inside.then_some(TarRange { offset, len, diff_id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_or_lying_record_is_ignored() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(tar_range(&file).unwrap(), None);
        let range = TarRange { offset: 4096, len: 1024, diff_id: Digest::of(b"x") };
        let identity = Identity { uuid: [7; 16], tar: Some(range) };
        let head = identity.encode(SuperBlock::default());
        file.write_all_at(&head, 0).unwrap();
        assert_eq!(tar_range(&file).unwrap(), None, "range beyond the file");
        file.set_len(8192).unwrap();
        assert_eq!(tar_range(&file).unwrap(), Some(range));
        file.write_all_at(b"?", 20).unwrap();
        assert_eq!(tar_range(&file).unwrap(), None);
    }
}
