//! Work that blocks: on a thread of its own, which ends soon after nobody waits for it any more, or its time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Whether work is still wanted. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    dropped: Arc<AtomicBool>,
    until: Instant,
    time: Duration,
}

impl Watch {
    /// For work that may take so long.
    pub(crate) fn new(time: Duration) -> Self {
        Self { dropped: Arc::default(), until: Instant::now() + time, time }
    }

    /// An error once nobody waits any more.
    pub(crate) fn check(&self) -> Result<()> {
        if self.dropped.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the source is not wanted any more"));
        }
        self.left().map(drop)
    }

    /// The time that is left.
    pub(crate) fn left(&self) -> Result<Duration> {
        let left = self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        left.ok_or_else(|| {
            Error::unavailable(format!("the source took longer than {} s", self.time.as_secs()))
        })
    }
}

/// Says that nobody waits when the future that holds it is dropped.
struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs what blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    watch: &Watch,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let _guard = Guard(watch.dropped.clone());
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(Error::unavailable(format!("preparing the source: {error}"))))
}
