//! Segment lists of sparse files, however they were recorded.

use super::entry::SparseMap;
use super::number;
use crate::error::Reason;

/// Checks a segment list against the file's size and the bytes that stand in the tar.
pub(super) fn checked(
    data: u64,
    size: u64,
    segments: Vec<(u64, u64)>,
    stored: u64,
) -> Result<SparseMap, Reason> {
    if size > i64::MAX as u64 {
        return Err(Reason::Range("the sparse file's size"));
    }
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, len) in &segments {
        if *offset < end {
            return Err(Reason::Sparse("segments overlap or are out of order"));
        }
        end = offset.checked_add(*len).ok_or(Reason::Range("a sparse segment"))?;
        sum += len;
    }
    if end > size {
        return Err(Reason::Sparse("a segment ends beyond the file"));
    }
    if sum != stored {
        return Err(Reason::Sparse("the segments do not add up to the data"));
    }
    Ok(SparseMap { data, size, segments })
}

/// The map at the start of a PAX 1.0 sparse file's data: decimal numbers, each ended by a newline, the first the number
/// of segments, padded to a whole block. Fed block by block.
pub(super) struct MapParser {
    number: Vec<u8>,
    expected: Option<u64>,
    offset: Option<u64>,
    segments: Vec<(u64, u64)>,
    limit: usize,
}

impl MapParser {
    pub fn new(limit: usize) -> Self {
        Self { number: Vec::new(), expected: None, offset: None, segments: Vec::new(), limit }
    }

    /// Takes the next block; true when the map is complete and the block was its last.
    pub fn feed(&mut self, block: &[u8]) -> Result<bool, Reason> {
        for byte in block {
            if *byte != b'\n' {
                if self.number.len() >= 20 {
                    return Err(Reason::Number("the sparse map"));
                }
                self.number.push(*byte);
                continue;
            }
            let value = number::decimal(&self.number, "the sparse map")?;
            self.number.clear();
            match (self.expected, self.offset.take()) {
                (None, _) if value > self.limit as u64 => {
                    return Err(Reason::Limit { field: "sparse_segments", limit: self.limit as u64 });
                }
                (None, _) => self.expected = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.segments.push((offset, value)),
            }
            if self.expected == Some(self.segments.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn finish(self) -> Vec<(u64, u64)> {
        self.segments
    }
}
