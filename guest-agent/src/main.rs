//! PID 1 of a Cloister guest: the only file of its initramfs.
//!
//! The same binary is the agent and, re-executed as `runtime …`, the short-lived helper that turns a process into a
//! container. Nothing that forks runs in the agent itself.

mod boot;
mod cgroup;
mod containers;
mod copy;
mod error;
mod forward;
mod grow;
mod host;
mod inroot;
mod log;
mod network;
mod pod;
mod reaper;
mod rootfs;
mod runtime;
mod server;
mod spec;
mod stats;
mod streams;
mod users;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("runtime") => runtime::main(&args.collect::<Vec<_>>()),
        _ if std::process::id() == 1 => boot::run(),
        _ => {
            eprintln!("cloister-agent is PID 1 of a Cloister guest; it does nothing elsewhere");
            ExitCode::FAILURE
        }
    }
}
