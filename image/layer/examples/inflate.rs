//! How fast gzip is inflated on one thread, in its processor time, which a busy machine disturbs less: `inflate LAYER.gz`.

use std::fs::{self, File};
use std::io::Read;

use cloister_layer::inflate::{Output, Piece, Source, Stop, gunzip};

/// Rounds; the fastest is printed.
const ROUNDS: usize = 5;
const READ: usize = 256 << 10;

struct Blob(File);

impl Source for Blob {
    fn next(&mut self, used: Piece) -> Result<Option<Piece>, Stop> {
        let mut bytes = if used.bytes.is_empty() { vec![0; READ] } else { used.bytes };
        // A failing disk ends the stream early, which the decoder reports.
        let end = self.0.read(&mut bytes).unwrap_or(0);
        Ok((end > 0).then_some(Piece { bytes, start: 0, end }))
    }
}

struct Count(u64);

impl Output for &mut Count {
    fn exchange(&mut self, full: Piece) -> Result<Vec<u8>, Stop> {
        self.0 += full.data().len() as u64;
        Ok(full.bytes)
    }
}

/// Seconds this thread has run (`Documentation/scheduler/sched-stats.rst`).
fn processor_time() -> Result<f64, Box<dyn std::error::Error>> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("schedstat is empty")?.parse::<u64>()?;
    Ok(nanoseconds as f64 / 1e9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: inflate LAYER.gz")?;
    let mut best = f64::MAX;
    let mut count = Count(0);
    for _ in 0..ROUNDS {
        count.0 = 0;
        let start = processor_time()?;
        gunzip(Blob(File::open(&path)?), &mut count, false).map_err(|stop| format!("{stop:?}"))?;
        best = best.min(processor_time()? - start);
    }
    println!("{:.3} s, {:.0} MB/s of {} MB", best, count.0 as f64 / best / 1e6, count.0 / 1_000_000);
    Ok(())
}
