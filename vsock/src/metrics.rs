//! Counters of one device, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter),* }

        /// A reading of the counters. All but `connections` only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Metrics { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            pub(crate) fn read(&self) -> Metrics {
                Metrics { $($name: self.$name.get()),* }
            }
        }
    };
}

counters! {
    /// Payload bytes taken from the guest.
    from_guest_bytes,
    /// Packets taken from the guest.
    from_guest_packets,
    /// Payload bytes given to the guest.
    to_guest_bytes,
    /// Packets given to the guest.
    to_guest_packets,
    /// Connections open now, those being set up and torn down included.
    connections,
    /// Connections made by the guest.
    accepted,
    /// Connections made by the host.
    dialled,
    /// Connections that ended by a reset from either side.
    resets,
    /// Packets and descriptor chains of the guest that break the protocol.
    protocol_errors,
    /// Times the guest's driver was reset or restarted.
    driver_resets,
}

/// One counter. Written by the device's thread only, so relaxed order is enough.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
