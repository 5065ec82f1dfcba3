//! When memory ran out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_sandbox::{Agent, printable};
use tokio::task::JoinHandle;

use super::Result;

/// How long the word of a kill may be on its way.
const WAY: Duration = Duration::from_secs(1);

/// Memory of a builder in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What there is.
    pub limit: u64,
    /// The most that was in use at once.
    pub peak: u64,
}

/// The last time that the kernel of a guest killed a process of a container for lack of memory. Counters alone do not tell whether
/// that has to do with a step that fails later.
#[derive(Debug)]
pub struct Kills {
    last: Arc<Mutex<Option<Instant>>>,
    listener: JoinHandle<()>,
}

impl Kills {
    /// Listens from now on, until it is dropped.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn watch(agent: &Agent, container: &str) -> Result<Self> {
        let mut events = agent.oom_events().await?;
        let last = Arc::new(Mutex::new(None));
        let (shared, container) = (Arc::clone(&last), container.to_owned());
        let listener = tokio::spawn(async move {
            loop {
                match events.next().await {
                    Ok(Some(hit)) if hit == container => {
                        *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(error = printable(&error.to_string()), "no more is heard of memory");
                        return;
                    }
                }
            }
        });
        Ok(Self { last, listener })
    }

    /// What ran out, if it did at `since` or later; `memory_bytes` is the container's limit.
    pub async fn since(
        &self,
        agent: &Agent,
        container: &str,
        memory_bytes: u64,
        since: Instant,
    ) -> Option<Memory> {
        let stats = agent.stats(container).await.ok()?;
        if stats.oom_kills == 0 && self.last().is_none() {
            return None;
        }
        // The kernel tells of it after the process is gone.
        let heard = async {
            while self.last().is_none_or(|last| last < since) {
                tokio::time::sleep(WAY / 20).await;
            }
        };
        tokio::time::timeout(WAY, heard).await.ok()?;
        Some(Memory { limit: memory_bytes, peak: stats.memory_peak_bytes.min(memory_bytes) })
    }

    fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kills {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
