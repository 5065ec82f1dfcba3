//! `cloister builder`.

use clap::{Args, Subcommand};

/// What to do with build caches.
#[derive(Debug, Subcommand)]
pub enum BuilderCommand {
    /// List the disks of build caches
    Du,
    /// Remove the disks of build caches that no build uses
    Prune(PruneArgs),
}

/// `builder prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only those of this key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}
