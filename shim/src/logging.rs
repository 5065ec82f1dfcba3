//! The shim's own log: lines into the `log` FIFO of its bundle, which containerd reads into its own.
//!
//! Spans carry the ids of pod and container. SIGUSR1 reads the level from the configuration again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Config, Log};

/// Changes the level of a running process.
pub struct Level(reload::Handle<Targets, Registry>);

/// Begins to log into the FIFO at `path`; `debug` is containerd's own wish.
pub fn start(path: &Path, log: &Log, debug: bool) -> Result<Level> {
    // Opened both ways, so that a restart of the reader is no error; what nobody reads in time is dropped.
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let writer = Arc::new(Fifo(fifo));
    let level = if debug && log.level == Log::default().level { "debug" } else { &log.level };
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let make = move || Lines(Arc::clone(&writer));
    let lines = if log.json {
        fmt::layer().json().with_writer(make).boxed()
    } else {
        fmt::layer().with_ansi(false).with_writer(make).boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("cannot start the log")?;
    Ok(Level(handle))
}

/// A level, or `module=level` directives divided by commas. Not an `EnvFilter`: its regular expressions would be one
/// more part of a program that each pod has in memory.
fn filter(level: &str) -> Result<Targets> {
    // The transports below gRPC tell every frame on `debug`.
    let directives = format!("h2=warn,tower=warn,{level}");
    directives.parse().with_context(|| format!("the log level {level:?} is not understood"))
}

impl Level {
    /// Reads the level from the configuration again.
    pub fn reload(&self) {
        let set = || -> Result<String> {
            let level = Config::load()?.log.level;
            self.0.reload(filter(&level)?)?;
            Ok(level)
        };
        match set() {
            Ok(level) => tracing::info!(level, "log level changed"),
            Err(error) => tracing::warn!("the log level stays: {error:#}"),
        }
    }
}

struct Fifo(File);

/// Writes whole lines; one that does not fit is lost rather than waited for.
struct Lines(Arc<Fifo>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = (&self.0.0).write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
