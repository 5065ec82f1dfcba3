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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn what_does_not_fit_is_left_and_an_empty_buffer_holds_no_memory() {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let mut buffer = Buffer::new(5000);
        let mut data = Scatter::range(&mem, 0, 6000);
        buffer.append(&mut data);
        assert_eq!((data.len(), buffer.room(), buffer.capacity()), (1000, 0, 5000));
        buffer.consume(usize::MAX);
        assert_eq!((buffer.is_empty(), buffer.capacity()), (true, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0usize..9000, 0usize..9000), 1..50)) {
            let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0xf000)]).unwrap();
            let noise: Vec<u8> = (0..0x10000u32).map(|i| (i * 7 + i / 251) as u8).collect();
            mem.write_slice(&noise, GuestAddress(0)).unwrap();
            let mut buffer = Buffer::new(20_000);
            let mut model: VecDeque<u8> = VecDeque::new();
            for (add, remove) in steps {
                let add = add.min(buffer.room());
                let start = add % 500;
                buffer.append(&mut Scatter::range(&mem, start as u64, add));
                model.extend(&noise[start..start + add]);
                let front = buffer.front().len().min(remove);
                prop_assert!(model.iter().take(front).eq(&buffer.front()[..front]));
                prop_assert!(!buffer.front().is_empty() || model.is_empty());
                buffer.consume(front);
                model.drain(..front);
                prop_assert_eq!(buffer.room(), 20_000 - model.len());
            }
        }
    }
}
