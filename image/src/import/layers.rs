//! All layers of one image, several at a time.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use cloister_layer::digest::Digest;

use super::Options;
use super::reader::{Stop, Tap};
use crate::error::{Error, IoContext, Result};
use crate::oci::{BlobRef, OCI_LAYER};
use crate::progress::{LayerProgress, Phase, Progress};
use crate::store::{BlobWriter, LayerFile, LayerRecord, Store, TempDir};

/// Most layers converted at a time unless asked otherwise. Each conversion keeps more than one processor busy.
const MAX_THREADS: usize = 4;
/// Memory for all conversions of one import together, in bytes.
const MEMORY: u64 = 240 << 20;
/// What a conversion takes besides its tree: buffers and the largest zstd window, in bytes.
const FIXED: u64 = 40 << 20;

/// One layer to import.
#[derive(Debug, Clone)]
pub(crate) struct LayerSpec {
    pub(crate) diff_id: Digest,
    /// The blob, when the source says what it is; else its digest is whatever it has, and only the diff ID counts.
    pub(crate) blob: Option<BlobRef>,
    /// Bytes of the blob.
    pub(crate) size: Option<u64>,
    /// The source's own name for it, for messages and for [`LayerSource::layer`].
    pub(crate) name: String,
}

/// A place layer blobs can be read from.
pub(crate) trait LayerSource: Sync {
    /// Opens a layer blob from its start. Called once for each layer that is not in the store, from several threads.
    fn layer<'a>(
        &'a self,
        layer: &LayerSpec,
        stop: &'a Stop,
        progress: &'a dyn Progress,
    ) -> Result<Box<dyn Read + Send + 'a>>;

    /// Layers worth reading at the same time even on one processor: more than one where reading means waiting.
    fn min_parallel(&self) -> usize {
        1
    }
}

/// A layer in the store, locked against pruning.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) record: LayerRecord,
    _layer: LayerFile,
    _blob: Option<File>,
}

/// Imports all layers; the result is in the order of `specs`. After the first error the others stop.
pub(super) fn import_all(
    store: &Store,
    temp: &TempDir,
    source: &dyn LayerSource,
    specs: &[LayerSpec],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Imported>> {
    // Largest first, so that no long layer starts when everything else is done.
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(specs[*i].size.unwrap_or(u64::MAX)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options
        .threads
        .unwrap_or_else(|| cores.max(source.min_parallel()).min(MAX_THREADS))
        .clamp(1, specs.len().max(1));
    let job = Job {
        store,
        temp,
        source,
        options,
        progress,
        stop: Stop::default(),
        memory: Memory::new(threads, &options.limits.layer),
    };
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Imported>>> = Mutex::new(specs.iter().map(|_| None).collect());
    // The first failure is the cause; the others merely stopped because of it.
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if job.stop.is_set() {
                        return;
                    }
                    match job.layer(index, &specs[index]) {
                        Ok(layer) => lock(&done)[index] = Some(layer),
                        Err(error) => {
                            lock(&failure).get_or_insert(error);
                            job.stop.set();
                        }
                    }
                }
            });
        }
    });
    match lock(&failure).take() {
        Some(error) => Err(error),
        None => Ok(std::mem::take(&mut *lock(&done)).into_iter().flatten().collect()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the import anyway when its scope is left.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Job<'a> {
    store: &'a Store,
    temp: &'a TempDir,
    source: &'a dyn LayerSource,
    options: &'a Options,
    progress: &'a dyn Progress,
    stop: Stop,
    memory: Memory,
}

/// Keeps all conversions together within [`MEMORY`]: each gets a share for its tree; a layer that needs more is converted
/// again, alone, with all of it.
struct Memory {
    share: u64,
    whole: u64,
    turn: RwLock<()>,
}

impl Memory {
    fn new(threads: usize, limits: &cloister_layer::Limits) -> Self {
        let threads = threads as u64;
        let share = MEMORY.saturating_sub(FIXED * threads) / threads;
        Self {
            share: share.max(8 << 20).min(limits.metadata_bytes),
            whole: limits.metadata_bytes,
            turn: RwLock::new(()),
        }
    }

    /// Runs a conversion with its share, and if that is too little with everything.
    fn run<T>(&self, mut convert: impl FnMut(u64) -> Result<T>) -> Result<T> {
        let shared = self.turn.read().unwrap_or_else(PoisonError::into_inner);
        let result = convert(self.share);
        drop(shared);
        match result {
            Err(Error::Layer { source, .. }) if self.share < self.whole && is_memory_limit(&source) => {
                let _alone = self.turn.write().unwrap_or_else(PoisonError::into_inner);
                convert(self.whole)
            }
            result => result,
        }
    }
}

fn is_memory_limit(error: &cloister_layer::Error) -> bool {
    use cloister_layer::{Error, Reason};
    const FIELD: &str = "metadata_bytes";
    match error.inner() {
        Error::Entry { reason: Reason::Limit { field, .. }, .. }
        | Error::Tar { reason: Reason::Limit { field, .. }, .. } => *field == FIELD,
        Error::Limit { field, .. } => *field == FIELD,
        _ => false,
    }
}

impl Job<'_> {
    fn layer(&self, index: usize, spec: &LayerSpec) -> Result<Imported> {
        let id = &spec.diff_id.hex()[..12];
        let report = |phase, done| {
            self.progress.layer(&LayerProgress { id, index, total: spec.size, done, phase });
        };
        if let Some(layer) = self.store.open_layer(&spec.diff_id)? {
            report(Phase::Exists, 0);
            return self.existing(spec, layer);
        }
        report(Phase::Waiting, 0);
        let _lock = self.store.layer_lock(&spec.diff_id)?;
        // Whoever had the lock before us may have made the very layer we need.
        if let Some(layer) = self.store.open_layer(&spec.diff_id)? {
            report(Phase::Exists, 0);
            return self.existing(spec, layer);
        }
        report(Phase::Converting, 0);
        let (layer, blob) =
            self.memory.run(|metadata_bytes| self.convert(index, id, spec, metadata_bytes))?;
        report(Phase::Done, spec.size.unwrap_or(0));
        imported(spec, layer, blob)
    }

    /// A layer that needs no reading; its compressed blob, if it was kept, is held as well.
    fn existing(&self, spec: &LayerSpec, layer: LayerFile) -> Result<Imported> {
        let blob = match &spec.blob {
            Some(blob) => self.store.open_blob(&blob.digest)?,
            None => None,
        };
        imported(spec, layer, blob)
    }

    /// Reads the blob once: into the converter and, when it is to be kept, into a file beside it.
    fn convert(
        &self,
        index: usize,
        id: &str,
        spec: &LayerSpec,
        metadata_bytes: u64,
    ) -> Result<(LayerFile, Option<File>)> {
        // Named by the bound too: a second attempt makes files of its own.
        let (out, out_path) = self.temp.file(&format!("layer-{index}-{metadata_bytes}"))?;
        let keep =
            self.store.keeps_blobs() && spec.blob.as_ref().is_some_and(|blob| blob.digest != spec.diff_id);
        let mut copy = if keep {
            Some(BlobWriter::new(self.temp, &format!("layer-blob-{index}-{metadata_bytes}"))?)
        } else {
            None
        };
        let tap = Tap {
            inner: self.source.layer(spec, &self.stop, self.progress)?,
            copy: copy.as_mut().map(|copy| copy as &mut (dyn std::io::Write + Send)),
            stop: &self.stop,
            progress: self.progress,
            id,
            index,
            total: spec.size,
            done: 0,
            reported: None,
        };
        let expected = cloister_layer::Expected {
            digest: spec.blob.as_ref().map(|blob| blob.digest),
            size: spec.blob.as_ref().map(|blob| blob.size),
            diff_id: Some(spec.diff_id),
        };
        // The tap reports progress; it also knows the source's bytes when nothing is converted yet.
        let limits = cloister_layer::Limits { metadata_bytes, ..self.options.limits.layer.clone() };
        cloister_layer::convert(tap, &expected, &out, &limits, &|_| {})
            .map_err(|source| Error::Layer { layer: spec.name.clone(), source })?;
        // Both wait for the disk; together they wait once. The blob is there first: of a layer that is there nothing is read again.
        let blob = std::thread::scope(|scope| {
            let blob = match (copy, &spec.blob) {
                (Some(copy), Some(blob)) => Some(scope.spawn(|| copy.publish(self.store, &blob.digest))),
                _ => None,
            };
            out.sync_all().at("write", &out_path)?;
            match blob.map(std::thread::ScopedJoinHandle::join) {
                None => Ok(None),
                Some(Ok(published)) => published.map(Some),
                Some(Err(panic)) => std::panic::resume_unwind(panic),
            }
        })?;
        let layer = self.store.publish_layer(out, &out_path, &spec.diff_id)?;
        Ok((layer, blob))
    }
}

fn imported(spec: &LayerSpec, layer: LayerFile, blob: Option<File>) -> Result<Imported> {
    let (digest, blob_size, media_type) = match &spec.blob {
        Some(blob) => (blob.digest, blob.size, blob.media_type.clone()),
        None => (spec.diff_id, layer.tar()?.len, OCI_LAYER.to_owned()),
    };
    let record = LayerRecord { diff_id: spec.diff_id, blob: digest, blob_size, media_type, size: layer.size };
    Ok(Imported { record, _layer: layer, _blob: blob })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_needs_more_memory_gets_all_of_it_once() {
        let limits = cloister_layer::Limits::default();
        let memory = Memory::new(4, &limits);
        let too_little = |limit| Error::Layer {
            layer: "x".to_owned(),
            source: cloister_layer::Error::Limit { field: "metadata_bytes", what: "bytes", limit },
        };
        let mut budgets = Vec::new();
        let mut convert = |budget| {
            budgets.push(budget);
            if budget < limits.metadata_bytes { Err(too_little(budget)) } else { Ok(()) }
        };
        memory.run(&mut convert).unwrap();
        assert_eq!(budgets, [20 << 20, limits.metadata_bytes]);
        let mut calls = 0;
        let refused = memory.run(|budget| -> Result<()> {
            calls += 1;
            Err(too_little(budget))
        });
        assert!(refused.is_err());
        assert_eq!(calls, 2);
        // Other failures are not tried again.
        let other = memory.run(|_| -> Result<()> { Err(Error::invalid("x", "y")) });
        assert!(matches!(other, Err(Error::Invalid { .. })));
    }

    #[test]
    fn all_conversions_together_stay_within_the_bound() {
        let limits = cloister_layer::Limits::default();
        for threads in 1..=MAX_THREADS {
            let memory = Memory::new(threads, &limits);
            assert!((memory.share + FIXED) * threads as u64 <= MEMORY, "{threads}");
            assert!(memory.whole + FIXED <= MEMORY);
        }
    }
}
