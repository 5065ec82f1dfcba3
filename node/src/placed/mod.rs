//! Which images of builds this node has, and has to have: brought here from other nodes, taken away with their builds,
//! and told in the builds' status.

mod build;
mod decide;
mod entry;
mod memory;
mod peers;
mod round;
mod seen;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube::Client;
use tokio::task::JoinSet;

use self::memory::Memory;
use self::seen::Seen;
use crate::import::{Importer, Request};

/// Changes within this time are one look.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How often to look when nothing changes; each blob and snapshot is asked for then.
const PERIOD: Duration = Duration::from_secs(60);
/// How long to leave a containerd alone that does not answer.
const AWAY: Duration = Duration::from_secs(3);

/// Keeps this node's images as builds want them.
pub struct Placement {
    client: Client,
    importer: Importer,
    /// This node's name.
    here: String,
    /// Where every node gives images, if this one does.
    port: Option<u16>,
    memory: BTreeMap<String, Memory>,
    work: JoinSet<Done>,
    started: u64,
}

/// Work that has ended.
struct Done {
    number: u64,
    request: Request,
    result: Result<(), String>,
}

impl Placement {
    /// For the node `here`; other nodes give their images on `port`.
    pub fn new(client: Client, importer: Importer, here: String, port: Option<u16>) -> Self {
        let (memory, work) = (BTreeMap::new(), JoinSet::new());
        Self { client, importer, here, port, memory, work, started: 0 }
    }

    /// Runs until dropped.
    ///
    /// # Errors
    /// When a watch ends for good.
    pub async fn run(mut self) -> Result<()> {
        let mut seen = Seen::new(&self.client, &self.here);
        let importer = self.importer.clone();
        let mut removal = std::pin::pin!(removal(&importer));
        let mut look = Instant::now();
        let mut failing = false;
        loop {
            let soon = Instant::now() + DEBOUNCE;
            tokio::select! {
                more = seen.change() => match more {
                    true => look = look.min(soon),
                    false => bail!("the watches have ended"),
                },
                () = &mut removal => {
                    removal.set(self::removal(&importer));
                    look = look.min(soon);
                }
                Some(done) = self.work.join_next() => {
                    // Nothing comes of work that was ended.
                    if let Ok(done) = done {
                        self.done(done);
                    }
                    look = Instant::now();
                }
                () = tokio::time::sleep_until(look.into()) => {
                    let looked = match seen.all() {
                        Some((builds, labels)) => self.round(builds, labels).await,
                        None => Ok(()),
                    };
                    if let Err(error) = &looked && !failing {
                        tracing::warn!(%error, "images of builds not looked at");
                    }
                    failing = looked.is_err();
                    let now = Instant::now();
                    let wakes = self.memory.values().filter_map(Memory::wake);
                    let next = wakes.min().unwrap_or(now + PERIOD).clamp(now + DEBOUNCE, now + PERIOD);
                    look = if failing { now + AWAY } else { next };
                }
            }
        }
    }

    fn done(&mut self, done: Done) {
        let Some(memory) = self.memory.get_mut(&done.request.build) else { return };
        if memory.work.as_ref().is_none_or(|work| work.number != done.number) {
            return;
        }
        if let Err(why) = &done.result {
            tracing::warn!(build = done.request.build, why, "image not brought here");
        }
        memory.ended(done.request, done.result, Instant::now());
    }
}

/// Waits until containerd says that images have changed.
async fn removal(importer: &Importer) {
    if importer.removal().await.is_err() {
        tokio::time::sleep(AWAY).await;
    }
}
