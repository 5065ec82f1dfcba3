//! One conversion for each blob, however many callers want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cloister_image::{Digest, LayerFile, Store};
use cloister_layer::{Expected, Limits};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::blob::{self, Blob};
use crate::blocking;
use crate::containerd::Containerd;
use crate::error::{Error, Result};
use crate::metrics::Conversions;
use crate::snapshots::state::OWNER;

/// Most conversions at a time; each keeps more than one processor busy and may take up to 220 MiB for its tree and buffers.
const MAX_CONVERSIONS: usize = 4;
/// Most blobs whose diff ID is remembered.
const MAX_KNOWN: usize = 4096;

/// Turns blobs of containerd into layers of the store.
#[derive(Debug)]
pub struct Converter {
    store: Store,
    containerd: Containerd,
    counters: Conversions,
    permits: Semaphore,
    /// Blob to diff ID, of conversions of this daemon's run.
    known: Mutex<HashMap<Digest, Digest>>,
    /// Who converts a blob has its lock.
    turns: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
}

/// The blob to convert.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

impl Converter {
    /// Nothing converted yet.
    pub fn new(store: Store, containerd: Containerd, counters: Conversions) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            containerd,
            counters,
            permits: Semaphore::new(cores.clamp(1, MAX_CONVERSIONS)),
            known: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// The layer made from a blob, converted now unless that was done before.
    pub async fn layer(&self, wanted: Wanted<'_>) -> Result<LayerFile> {
        let turn = self.turn(wanted.digest);
        let _turn = turn.lock().await;
        let known = lock(&self.known).get(&wanted.digest).copied();
        if let Some(diff_id) = known {
            let store = self.store.clone();
            if let Some(layer) = blocking::run(move || Ok(store.open_layer(&diff_id)?)).await? {
                self.counters.shared.inc();
                return Ok(layer);
            }
        }
        let _permit = self.permits.acquire().await.map_err(|_| Error::Died)?;
        let stream = self.containerd.read(wanted.namespace, &wanted.digest.to_string()).await?;
        let (to, from) = blob::pipe();
        let store = self.store.clone();
        let counters = self.counters.clone();
        let Wanted { digest, size, .. } = wanted;
        let work = blocking::run(move || convert(&store, from, digest, size, &counters));
        // The feeder ends with this call: a caller that goes away ends the conversion too.
        let (layer, ()) = tokio::join!(work, blob::feed(stream, to));
        let layer = layer?;
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(digest, layer.diff_id);
        Ok(layer)
    }

    fn turn(&self, digest: Digest) -> Arc<AsyncMutex<()>> {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(AsyncMutex::new(()));
        turns.insert(digest, Arc::downgrade(&turn));
        turn
    }
}

fn convert(
    store: &Store,
    blob: Blob,
    digest: Digest,
    size: u64,
    counters: &Conversions,
) -> Result<LayerFile> {
    let start = std::time::Instant::now();
    let expected = Expected { digest: Some(digest), size: Some(size), diff_id: None };
    let (layer, converted) =
        store.add_layer(blob, &digest.to_string(), &expected, &Limits::default(), OWNER)?;
    counters.converted.inc();
    counters.compressed_bytes.inc_by(converted.compressed_size);
    counters.tar_bytes.inc_by(converted.tar_size);
    counters.seconds.inc_by(start.elapsed().as_secs_f64());
    tracing::info!(
        blob = %digest,
        layer = %layer.diff_id,
        bytes = converted.tar_size,
        milliseconds = start.elapsed().as_millis(),
        "layer converted"
    );
    Ok(layer)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
