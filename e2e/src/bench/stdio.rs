//! A gigabyte through `cloister run` each way, compared by hash, with control calls timed meanwhile.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{Report, Verdict};
use crate::lab::Lab;
use crate::stats::Series;

/// Bytes sent each way.
const BYTES: u64 = 1 << 30;
const PIECE: usize = 1 << 20;

/// In and out at once through `cat`, the pattern checked by SHA-256.
pub fn gigabyte(report: &mut Report) -> Result<()> {
    let lab = Lab::with_debian()?;
    let mut command = lab.cloister();
    command.args(["run", "--rm", "-i", "--name", "flood", "debian", "--", "cat"]);
    let start = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let sent = feed(&mut child)?;
    let running = Arc::new(AtomicBool::new(true));
    let pings = ping(&lab, Arc::clone(&running));
    let received = drain(&mut child)?;
    let took = start.elapsed().as_secs_f64();
    running.store(false, Ordering::Relaxed);
    let status = child.wait()?;
    let sent = sent.join().map_err(|_| anyhow::anyhow!("the sender died"))??;
    let pings = pings.join().map_err(|_| anyhow::anyhow!("the pinger died"))?;
    ensure!(status.success(), "cat ended with {status}");
    ensure!(sent == received, "what came back is not what was sent");

    let mut rate = Series::new("cloister run -i … cat: 1 GiB in and out at once", "MB/s");
    rate.runs.push(BYTES as f64 / 1e6 / took);
    report.add(rate);
    let mut latency = Series::new("control call (health) meanwhile", "ms");
    latency.runs = pings;
    let worst = latency.max();
    report.add(latency);
    report.judge(Verdict::at_most("slowest control call during 1 GiB each way", worst, "ms", 100.0));
    Ok(())
}

fn feed(child: &mut Child) -> Result<thread::JoinHandle<Result<Vec<u8>>>> {
    let mut input = child.stdin.take().context("no stdin")?;
    Ok(thread::spawn(move || {
        let mut hash = Sha256::new();
        let mut piece = vec![0u8; PIECE];
        for index in 0..BYTES / PIECE as u64 {
            // Not all equal, so that a lost or doubled piece changes the hash.
            piece[..8].copy_from_slice(&index.to_le_bytes());
            hash.update(&piece);
            input.write_all(&piece)?;
        }
        Ok(hash.finalize().to_vec())
    }))
}

fn drain(child: &mut Child) -> Result<Vec<u8>> {
    let mut output = child.stdout.take().context("no stdout")?;
    let mut hash = Sha256::new();
    let mut piece = vec![0u8; PIECE];
    loop {
        match output.read(&mut piece)? {
            0 => return Ok(hash.finalize().to_vec()),
            n => hash.update(&piece[..n]),
        }
    }
}

/// Milliseconds of one health call after the other until told to stop.
fn ping(lab: &Lab, running: Arc<AtomicBool>) -> thread::JoinHandle<Vec<f64>> {
    let folder = lab.root().to_path_buf();
    thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        let mut agent = None;
        while running.load(Ordering::Relaxed) {
            if agent.is_none() {
                agent = runtime.block_on(crate::lab::agent(&folder, "flood")).ok();
            } else if let Some(agent) = agent.as_mut() {
                let start = Instant::now();
                if runtime.block_on(agent.health(Duration::from_secs(5))).is_ok() {
                    taken.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        taken
    })
}
