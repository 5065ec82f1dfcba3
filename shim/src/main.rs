//! `containerd-shim-cloister-v2`: the shim that containerd starts for each pod.
//!
//! One process owns one pod: its microVM, its containers and their processes. `start` makes the socket and leaves the
//! serving process behind, `delete` cleans up from what is on disk alone, everything else happens in [`serve`].

mod bootstrap;
mod builder;
mod cgroup;
mod cleanup;
mod config;
mod events;
mod failure;
mod info;
mod io;
mod lasting;
mod logging;
mod metrics;
mod options;
mod pod;
mod process;
mod rootfs;
mod sandboxes;
mod serve;
mod slots;
mod spec;
mod state;
mod stats;
mod task;
mod volumes;

use std::process::ExitCode;

use anyhow::{Context, Result};
use containerd_shim::Flags;
use containerd_shim::protos::protobuf::Message;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-cloister-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&arguments).context("cannot read the arguments")?;
    if flags.version {
        println!("containerd-shim-cloister-v2 {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return answer(&info::message()?);
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(&flags),
        "delete" => delete(&flags),
        _ => serve::run(&flags),
    }
}

fn delete(flags: &Flags) -> Result<()> {
    let answered = cleanup::delete(flags)?;
    answer(&answered.write_to_bytes()?)
}

/// Writes an answer to containerd, which reads it from standard output.
fn answer(bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot answer containerd")
}
