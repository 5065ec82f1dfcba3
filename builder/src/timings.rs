//! How long each part of a builder's start took.

use std::time::{Duration, Instant};

/// The parts of a start, counted from the begin of each.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    last: Instant,
    /// Until the guest's agent answered.
    pub boot: Duration,
    /// Until buildkitd's process ran: disks plugged and mounted, root filesystem stacked.
    pub start: Duration,
    /// Until buildkitd took a connection.
    pub ready: Duration,
}

impl Timings {
    pub(crate) fn begin() -> Self {
        let zero = Duration::ZERO;
        Self { last: Instant::now(), boot: zero, start: zero, ready: zero }
    }

    pub(crate) fn boot(&mut self) {
        self.boot = self.lap();
    }

    pub(crate) fn started(&mut self) {
        self.start = self.lap();
    }

    pub(crate) fn ready(&mut self) {
        self.ready = self.lap();
    }

    /// All parts together.
    pub fn total(&self) -> Duration {
        self.boot + self.start + self.ready
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let took = now.duration_since(self.last);
        self.last = now;
        took
    }
}
