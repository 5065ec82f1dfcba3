//! Disk work away from the executor.

use crate::error::{Error, Result};

/// Runs `work` on a thread that may block.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Died)?
}
