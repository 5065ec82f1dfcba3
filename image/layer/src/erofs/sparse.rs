//! Files with holes: from data segments anywhere in the output file to a map of equal chunks.
//!
//! EROFS addresses a sparse file in chunks of a power of two of blocks, each a hole or a run of blocks. Segments of a tar
//! are packed without padding, so a chunk can be used where it stands only if one segment covers it and its bytes start
//! at a block boundary; every other chunk with data is copied to a place of its own, behind the tar, and padded.

use super::format::{BLOCK_BITS, BLOCK_SIZE, NULL_ADDR};
use crate::error::Reason;

/// Chunks per file: bounds the map (256 KiB) however large the holes are.
const MAX_CHUNKS: u64 = 1 << 16;
/// log2 of the largest chunk the format allows.
const MAX_CHUNK_BITS: u32 = 31 + BLOCK_BITS as u32;

/// Consecutive bytes of a sparse file that stand in the output file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where the bytes belong in the sparse file.
    pub offset: u64,
    /// How many; not 0.
    pub len: u64,
    /// Where they stand in the output file, from its start.
    pub at: u64,
}

/// A regular file with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    size: u64,
    chunk_bits: u32,
    segments: Vec<Segment>,
}

impl Sparse {
    /// A file of `size` bytes with data in `segments` and zeros elsewhere.
    ///
    /// # Errors
    /// The segments overlap, are out of order, or reach beyond `size`; `size` is beyond what the format allows.
    pub fn new(size: u64, segments: impl IntoIterator<Item = Segment>) -> Result<Self, Reason> {
        if size > MAX_CHUNKS << MAX_CHUNK_BITS {
            return Err(Reason::Range("the size"));
        }
        let mut joined: Vec<Segment> = Vec::new();
        let mut end = 0;
        for segment in segments {
            if segment.offset < end {
                return Err(Reason::Sparse("segments overlap or are out of order"));
            }
            end = segment.offset.checked_add(segment.len).ok_or(Reason::Range("a sparse segment"))?;
            if end > size {
                return Err(Reason::Sparse("a segment ends beyond the file"));
            }
            match joined.last_mut() {
                _ if segment.len == 0 => {}
                Some(last)
                    if last.offset + last.len == segment.offset && last.at + last.len == segment.at =>
                {
                    last.len += segment.len;
                }
                _ => joined.push(segment),
            }
        }
        joined.shrink_to_fit();
        let chunk_bits = chunk_bits(size, &joined);
        Ok(Self { size, chunk_bits, segments: joined })
    }

    /// Bytes of the file, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the data is, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Value of the inode's chunk format field: 4-byte block addresses, chunks of this many blocks as a power of two.
    pub(super) fn chunk_format(&self) -> u32 {
        self.chunk_bits - u32::from(BLOCK_BITS)
    }

    pub(super) fn chunks(&self) -> u64 {
        self.size.div_ceil(1 << self.chunk_bits)
    }

    /// Bytes in memory, the finished map included.
    pub(super) fn cost(&self) -> usize {
        self.segments.len() * size_of::<Segment>() + self.chunks() as usize * 4
    }

    /// Makes the map: for each chunk the block where it stands or [`NULL_ADDR`]. `spill` is called for each chunk that
    /// has to be assembled, with its padded length and its pieces (`offset` counted from the chunk's start), in order,
    /// and returns the position in the output file, a multiple of the block size, where it put them.
    pub(super) fn map<E>(
        &self,
        mut spill: impl FnMut(u64, &mut dyn Iterator<Item = Segment>) -> Result<u64, E>,
    ) -> Result<Vec<u32>, E> {
        let chunk_size = 1 << self.chunk_bits;
        let mut map = Vec::with_capacity(self.chunks() as usize);
        let mut rest = &self.segments[..];
        for chunk in 0..self.chunks() {
            let start = chunk << self.chunk_bits;
            let end = (start + chunk_size).min(self.size);
            while let Some((first, others)) = rest.split_first()
                && first.offset + first.len <= start
            {
                rest = others;
            }
            map.push(match rest.first() {
                None => NULL_ADDR,
                Some(first) if first.offset >= end => NULL_ADDR,
                Some(first) => {
                    let covered = first.offset <= start && first.offset + first.len >= end;
                    let at = (first.at + start).wrapping_sub(first.offset);
                    let position = if covered && at.is_multiple_of(BLOCK_SIZE) {
                        at
                    } else {
                        let mut pieces = rest.iter().take_while(|s| s.offset < end).map(|s| {
                            let from = s.offset.max(start);
                            let to = (s.offset + s.len).min(end);
                            Segment { offset: from - start, len: to - from, at: s.at + (from - s.offset) }
                        });
                        spill((end - start).next_multiple_of(BLOCK_SIZE), &mut pieces)?
                    };
                    // Positions are below 2^32 blocks: the writer refuses to go further.
                    (position / BLOCK_SIZE) as u32
                }
            });
        }
        Ok(map)
    }
}

/// The largest chunk that no segment boundary cuts, but enough that there are at most [`MAX_CHUNKS`].
fn chunk_bits(size: u64, segments: &[Segment]) -> u32 {
    let boundaries = segments.iter().flat_map(|s| [s.offset, s.offset + s.len]).filter(|b| *b != size);
    let natural = boundaries.map(u64::trailing_zeros).min().unwrap_or(MAX_CHUNK_BITS);
    let mut bits = natural.clamp(BLOCK_BITS.into(), MAX_CHUNK_BITS);
    while size.div_ceil(1 << bits) > MAX_CHUNKS {
        bits += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(sparse: &Sparse) -> (Vec<u32>, Vec<(u64, Vec<Segment>)>) {
        let mut spilled = Vec::new();
        let map = sparse.map(|len, pieces| {
            spilled.push((len, pieces.collect()));
            Ok::<u64, ()>(1 << 30)
        });
        (map.unwrap(), spilled)
    }

    #[test]
    fn aligned_segments_are_used_in_place() {
        let segments =
            [Segment { offset: 8192, len: 4096, at: 10240 }, Segment { offset: 20480, len: 100, at: 14336 }];
        let sparse = Sparse::new(20580, segments).unwrap();
        assert_eq!(sparse.chunk_bits, 12);
        assert_eq!(map(&sparse), (vec![NULL_ADDR, NULL_ADDR, 20, NULL_ADDR, NULL_ADDR, 28], vec![]));
    }

    #[test]
    fn unaligned_segments_are_assembled() {
        let segments = [Segment { offset: 10, len: 5, at: 1024 }, Segment { offset: 500, len: 24, at: 1029 }];
        let sparse = Sparse::new(2000, segments).unwrap();
        let (map, spilled) = map(&sparse);
        assert_eq!(map, [1 << 21, 1 << 21, NULL_ADDR, NULL_ADDR]);
        let piece = |offset, len, at| Segment { offset, len, at };
        assert_eq!(
            spilled,
            [(512, vec![piece(10, 5, 1024), piece(500, 12, 1029)]), (512, vec![piece(0, 12, 1041)])]
        );
    }

    #[test]
    fn only_holes_take_one_chunk_and_huge_files_few() {
        let sparse = Sparse::new(1 << 40, []).unwrap();
        assert_eq!(map(&sparse), (vec![NULL_ADDR], vec![]));
        let sparse = Sparse::new(1 << 45, [Segment { offset: 512, len: 512, at: 4096 }]).unwrap();
        assert_eq!(sparse.chunks(), MAX_CHUNKS);
        assert_eq!(Sparse::new(0, []).unwrap().chunks(), 0);
    }

    #[test]
    fn lies_are_refused() {
        let s = |offset, len| Segment { offset, len, at: 0 };
        assert!(Sparse::new(100, [s(0, 101)]).is_err());
        assert!(Sparse::new(100, [s(50, 10), s(40, 5)]).is_err());
        assert!(Sparse::new(u64::MAX, []).is_err());
        assert!(Sparse::new(100, [s(50, u64::MAX)]).is_err());
    }
}
