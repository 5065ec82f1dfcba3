//! What stands between a source and the converter: progress, cancellation, and a copy of the blob for the store.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::progress::{LayerProgress, Phase, Progress};

/// Shortest time between two progress reports of one layer.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Set when one layer failed, so that the others end soon.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Passes a layer blob on, copies it and reports how far it is.
pub(super) struct Tap<'a, R> {
    pub(super) inner: R,
    /// Receives a copy of every byte.
    pub(super) copy: Option<&'a mut (dyn Write + Send)>,
    pub(super) stop: &'a Stop,
    pub(super) progress: &'a dyn Progress,
    pub(super) id: &'a str,
    pub(super) index: usize,
    pub(super) total: Option<u64>,
    pub(super) done: u64,
    pub(super) reported: Option<Instant>,
}

impl<R: Read> Read for Tap<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_set() {
            return Err(io::Error::other("stopped, because another layer failed"));
        }
        let n = self.inner.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..n])?;
        }
        self.done += n as u64;
        if n > 0 && self.reported.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            self.progress.layer(&LayerProgress {
                id: self.id,
                index: self.index,
                total: self.total,
                done: self.done,
                phase: Phase::Converting,
            });
        }
        Ok(n)
    }
}
