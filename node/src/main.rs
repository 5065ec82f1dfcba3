//! `cloister-node`: the daemon of each node. It gives containerd a snapshotter and a differ that turn image layers into
//! file systems for microVMs, collects metrics, and keeps the images of builds in containerd's image store.

mod api;
mod blocking;
mod builds;
mod cluster;
mod command;
mod config;
mod containerd;
mod daemon;
mod differ;
mod distribute;
mod error;
mod import;
mod install;
mod listen;
mod metrics;
mod mounts;
mod placed;
mod route;
mod snapshots;
mod standby;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = config::Args::parse();
    let command = args.command.take();
    let config = args.settle()?;
    // The transport below gRPC tells every frame on `debug`.
    let filter = EnvFilter::try_new(format!("h2=warn,tower=warn,{}", config.log_level))
        .with_context(|| format!("log level {:?}: try warn, info or debug", config.log_level))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    // Disk work has threads of its own; what is left is passing bytes on.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Some(command) => command::run(command, config).await,
            None => daemon::run(config).await,
        }
    });
    // A conversion that still runs leaves only what the next start removes.
    runtime.shutdown_background();
    result
}
