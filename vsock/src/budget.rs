//! How many bytes of guest data may be held for host sockets that are full, over all connections.
//!
//! A guest may send as much as the credit it was given, so credit given is memory promised. Each connection's credit is therefore
//! reserved when the connection is made and returned when it ends; the sum never exceeds the total, and every connection up to the
//! limit gets at least `total / (2 × connections)`.

/// The reserve.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Most bytes for one connection.
    most: usize,
    /// Bytes every connection gets at least.
    floor: usize,
    connections: usize,
    /// Bytes not reserved.
    free: usize,
    /// Connections that could still be made.
    slots: usize,
}

impl Budget {
    pub(crate) fn new(total: usize, connections: usize, most: usize) -> Self {
        let floor = (total / 2 / connections.max(1)).min(most);
        Self { most, floor, connections, free: total, slots: connections }
    }

    /// Reserves credit for one more connection: the most while little is used, less as the total fills up. `None` when there are as
    /// many connections as allowed.
    pub(crate) fn reserve(&mut self) -> Option<usize> {
        let others = self.slots.checked_sub(1)?;
        let spare = self.free.saturating_sub(self.floor * others);
        let bytes = (spare / 8).clamp(self.floor, self.most).min(self.free);
        self.slots = others;
        self.free -= bytes;
        Some(bytes)
    }

    /// Returns what a connection had.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.free += bytes;
        self.slots = (self.slots + 1).min(self.connections);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_credit_stays_within_the_total() {
        let (total, connections, most) = (64 << 20, 1024, 256 << 10);
        let mut budget = Budget::new(total, connections, most);
        let given: Vec<usize> = std::iter::from_fn(|| budget.reserve()).collect();
        assert_eq!(given.len(), connections);
        assert!(given.iter().sum::<usize>() <= total);
        assert_eq!(given[0], most);
        assert!(given.iter().all(|bytes| *bytes >= total / 2 / connections));
        for bytes in given {
            budget.release(bytes);
        }
        assert_eq!(budget.reserve(), Some(most));
    }

    #[test]
    fn a_small_total_still_serves_every_connection() {
        let mut budget = Budget::new(1 << 20, 16, 256 << 10);
        let given: Vec<usize> = std::iter::from_fn(|| budget.reserve()).collect();
        assert_eq!(given.len(), 16);
        assert!(given.iter().sum::<usize>() <= 1 << 20);
        assert!(given.iter().all(|bytes| *bytes >= 32 << 10));
    }
}
