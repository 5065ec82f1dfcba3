//! `cloister-operator`: the controller of `ImageBuild`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use cloister_operator::config::Args;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args = Args::parse();
    // The transport tells every frame on `debug`.
    let filter = EnvFilter::try_new(format!("h2=warn,hyper_util=warn,tower=warn,{}", args.log_level))
        .with_context(|| format!("log level {:?}: try warn, info or debug", args.log_level))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(cloister_operator::run::run(args));
    runtime.shutdown_background();
    result
}
