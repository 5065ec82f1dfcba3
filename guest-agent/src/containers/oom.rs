//! Out-of-memory kills, as the kernel announces them on `memory.events`, and those that the kernel shrinks from
//! (Documentation/accounting/psi.rst).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroup;
use crate::error::{Context, Result};
use crate::reaper::Exit;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 256;

/// A stall: in 10 s (the longest window there is) all processes waited for memory for 6 s at once; microseconds.
const STALL: &[u8] = b"full 6000000 10000000\0";
/// Two stalls within this time are one that goes on. The kernel tells of one for each window.
const AGAIN: Duration = Duration::from_secs(15);
/// How long killed processes may take to be gone.
const KILL: Duration = Duration::from_secs(10);

/// Tells who was hit.
pub struct Watch {
    events: broadcast::Sender<String>,
}

impl Watch {
    /// Nobody is watched yet.
    pub fn new() -> Self {
        Self { events: broadcast::Sender::new(BACKLOG) }
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<String> {
        self.events.subscribe()
    }

    /// Watches a container until its init process ends.
    pub fn watch(&self, id: &str, cgroup: &Cgroup, mut ended: watch::Receiver<Option<Exit>>) {
        let (id, cgroup, events) = (id.to_owned(), cgroup.clone(), self.events.clone());
        tokio::spawn(async move {
            let mut seen = 0;
            let mut tell = || {
                let kills = cgroup.oom_kills();
                if kills > seen {
                    seen = kills;
                    let _ = events.send(id.clone()); // nobody may be listening
                }
            };
            // kernfs announces a change by POLLPRI.
            let file = File::open(cgroup.path().join("memory.events"));
            // SAFETY: the AsyncFd owns the file, which is neither replaced nor closed while registered.
            let file = file
                .and_then(|file| unsafe { Ok(AsyncFd::register_with_interest(file, Interest::PRIORITY)?) });
            if let Ok(file) = file {
                loop {
                    tokio::select! {
                        ready = file.ready(Interest::PRIORITY) => match ready {
                            Ok(mut guard) => guard.clear_ready(),
                            Err(_) => break,
                        },
                        _ = ended.wait_for(Option::is_some) => break,
                    }
                    tell();
                }
            } else {
                let _ = ended.wait_for(Option::is_some).await;
            }
            tell();
        });
    }

    /// Kills what is in a cgroup of the container when it stalls and goes on stalling, until the container's init process
    /// ends.
    ///
    /// # Errors
    /// When the kernel does not watch it.
    pub fn end_stalled(
        &self,
        id: &str,
        cgroup: &Cgroup,
        mut ended: watch::Receiver<Option<Exit>>,
    ) -> Result<()> {
        let path = cgroup.path().join("memory.pressure");
        let what = || format!("watch {}", path.display());
        let mut file = OpenOptions::new().read(true).write(true).open(&path).context(what)?;
        file.write_all(STALL).context(what)?;
        // SAFETY: the AsyncFd owns the file, which is neither replaced nor closed while registered.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        let file = file.map_err(std::io::Error::from).context(what)?;
        let (id, cgroup, events) = (id.to_owned(), cgroup.clone(), self.events.clone());
        tokio::spawn(async move {
            let mut last: Option<Instant> = None;
            loop {
                tokio::select! {
                    ready = file.ready(Interest::PRIORITY) => match ready {
                        Ok(mut guard) => guard.clear_ready(),
                        Err(_) => return,
                    },
                    _ = ended.wait_for(Option::is_some) => return,
                }
                let goes_on = last.is_some_and(|last| last.elapsed() < AGAIN);
                last = (!goes_on).then(Instant::now);
                if goes_on {
                    tracing::warn!(container = id, "processes only wait for memory: they are killed");
                    let _ = events.send(id.clone()); // nobody may be listening
                    let cgroup = cgroup.clone();
                    let killed = tokio::task::spawn_blocking(move || cgroup.kill(KILL)).await;
                    if let Ok(Err(error)) = killed {
                        tracing::warn!(%error, container = id, "processes that wait for memory are not gone");
                    }
                }
            }
        });
        Ok(())
    }
}
