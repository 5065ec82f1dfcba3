//! Out-of-memory kills, as the kernel announces them on `memory.events`.

use std::fs::File;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroup;
use crate::reaper::Exit;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 256;

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
}
