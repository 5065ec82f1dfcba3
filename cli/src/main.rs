//! `cloister`: container images in microVMs of their own.

mod args;
mod command;
mod disks;
mod exit;
mod host;
mod kernel;
mod name;
mod output;
mod paths;
mod progress;
mod signals;
mod supervise;
mod terminal;
mod value;
mod vm;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    match Path::new(&called).file_name().and_then(|name| name.to_str()) {
        Some(command::kube::PLUGIN) => kube(words),
        Some(command::kube::COMPLETION) => ExitCode::from(command::kube::complete(words)),
        _ => cloister(),
    }
}

/// `kubectl cloister …`.
fn kube(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match command::kube::run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cloister: {}", output::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn cloister() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.global.log_level);
    let bad_filter = filter.is_err();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    if bad_filter {
        eprintln!("cloister: `{}` is not a level or filter; try warn, info or debug", cli.global.log_level);
        return ExitCode::from(exit::FAILED);
    }
    // What `run` and `exec` fail with must not be taken for their command's own code.
    let failure = match cli.command {
        Command::Run(_) | Command::Exec(_) | Command::Supervise { .. } => exit::FAILED,
        _ => 1,
    };
    match command::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cloister: {}", output::one_line(&error));
            ExitCode::from(failure)
        }
    }
}
