//! `kubectl cloister …`: builds in a cluster, through its API alone.

mod build;
mod client;
mod completion;
mod end;
mod follow;
mod list;
mod logs;
mod name;
mod object;
mod pack;
mod secret;
mod selector;
mod stand;
mod submit;
mod upload;
mod watch;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use crate::args::kube::{KubeCli, KubeCommand};

pub use completion::complete;

/// Who writes: the field manager of everything here.
const MANAGER: &str = PLUGIN;

/// The name under which kubectl finds its plugin.
pub const PLUGIN: &str = "kubectl-cloister";
/// The name under which kubectl asks what may follow on its plugin's command line.
pub const COMPLETION: &str = "kubectl_complete-cloister";

/// Runs a command line; returns what to exit with.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<u8> {
    let cli = KubeCli::parse_from(std::iter::once(PLUGIN.into()).chain(arguments));
    let global = cli.global;
    match cli.command {
        KubeCommand::Build(args) => super::wait_for(build::run(&global, *args)),
        KubeCommand::Logs(args) => super::wait_for(logs::run(&global, &args)),
        KubeCommand::Cancel(args) => super::wait_for(end::cancel(&global, &args)),
        KubeCommand::Retry(args) => super::wait_for(end::retry(&global, &args)),
        KubeCommand::Ls(args) => super::wait_for(list::run(&global, &args)),
        KubeCommand::Completion { shell } => {
            let mut command = KubeCli::command();
            clap_complete::generate(shell, &mut command, PLUGIN, &mut std::io::stdout());
            Ok(0)
        }
        KubeCommand::Man { dir: None } => {
            clap_mangen::Man::new(KubeCli::command()).render(&mut std::io::stdout())?;
            Ok(0)
        }
        KubeCommand::Man { dir: Some(dir) } => {
            clap_mangen::generate_to(KubeCli::command(), &dir)
                .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            Ok(0)
        }
    }
}
