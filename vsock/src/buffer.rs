//! A byte queue with a hard limit, for what a host socket did not take yet.

use crate::scatter::Scatter;

/// First allocation, in bytes.
const FIRST: usize = 4096;

/// A ring of bytes that grows by doubling up to its limit, and gives its memory back when empty.
///
/// A list of packets would cost a guest one byte to make us spend fifty; a ring costs what it holds.
#[derive(Debug)]
pub(crate) struct Buffer {
    ring: Box<[u8]>,
    head: usize,
    len: usize,
    limit: usize,
}

impl Buffer {
    /// An empty buffer that never holds more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { ring: Box::default(), head: 0, len: 0, limit }
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    #[cfg(any(test, feature = "harness"))]
    pub(crate) fn capacity(&self) -> usize {
        self.ring.len()
    }

    /// Bytes that can still be added.
    pub(crate) fn room(&self) -> usize {
        self.limit - self.len
    }

    /// Appends all of `data`, which must fit in [`room`](Self::room): what does not fit is left in `data`.
    pub(crate) fn append(&mut self, data: &mut Scatter<'_>) {
        self.reserve(data.len().min(self.room()));
        while data.len() > 0 && self.len < self.ring.len() {
            let start = (self.head + self.len) % self.ring.len();
            let end = if start < self.head { self.head } else { self.ring.len() };
            let taken = data.take(&mut self.ring[start..end]);
            if taken == 0 {
                break;
            }
            self.len += taken;
        }
    }

    /// The oldest bytes that lie in one piece.
    pub(crate) fn front(&self) -> &[u8] {
        let end = (self.head + self.len).min(self.ring.len());
        &self.ring[self.head..end]
    }

    /// Forgets the oldest `count` bytes, at most all.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        if self.len == 0 {
            self.clear();
        } else {
            self.head = (self.head + count) % self.ring.len();
        }
    }

    /// Forgets everything and gives the memory back.
    pub(crate) fn clear(&mut self) {
        self.ring = Box::default();
        self.head = 0;
        self.len = 0;
    }

    fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        if needed <= self.ring.len() {
            return;
        }
        let size = needed.max(self.ring.len() * 2).max(FIRST).min(self.limit);
        let mut ring = vec![0; size].into_boxed_slice();
        let first = self.front().len();
        ring[..first].copy_from_slice(self.front());
        let rest = self.len - first;
        ring[first..self.len].copy_from_slice(&self.ring[..rest]);
        self.ring = ring;
        self.head = 0;
    }
}
