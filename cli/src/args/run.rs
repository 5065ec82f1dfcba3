//! `cloister run` and `cloister exec`.

use std::path::PathBuf;

use clap::Args;

use super::image::RegistryArgs;
use crate::value::{self, Volume};

/// What a process may be given, for `run` and `exec` alike.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// Connect standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable; without a value it is passed on from here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables of a file with one KEY[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// User the process runs as: NAME or UID, with :GROUP or :GID if wanted
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Folder the process starts in
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
}

/// `run`.
#[derive(Debug, Args)]
#[command(override_usage = "cloister run [OPTIONS] IMAGE [--] [COMMAND]...")]
pub struct RunArgs {
    /// What the process is given.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Show a folder or a regular file of this machine in the microVM
    #[arg(short, long = "volume", value_name = "HOST:GUEST[:ro]", value_parser = value::volume)]
    pub volumes: Vec<Volume>,
    /// Memory of the container (b, k, m or g); the microVM gets what its kernel needs on top
    #[arg(short, long, value_name = "MEMORY", value_parser = value::size)]
    pub memory: Option<u64>,
    /// Processors, such as 2 or 0.5
    #[arg(long, value_name = "N", value_parser = value::cpus)]
    pub cpus: Option<u64>,
    /// Lift the restrictions inside the microVM (gives nothing of this machine)
    #[arg(long)]
    pub privileged: bool,
    /// Make the root filesystem read-only
    #[arg(long)]
    pub read_only: bool,
    /// Program to run instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Remove the microVM's record once it ends
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Run in the background and print the name
    #[arg(short, long)]
    pub detach: bool,
    /// Name of the microVM [default: two words]
    #[arg(long, value_name = "NAME", value_parser = crate::name::valid)]
    pub name: Option<String>,
    /// Folder with the guest kernel to boot
    #[arg(long, value_name = "DIR", env = "CLOISTER_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// auto, kvm, or tcg (emulation); auto warns when it has to emulate
    #[arg(long, value_name = "ACCEL", env = "CLOISTER_ACCEL", default_value = "auto")]
    pub accel: cloister_vmm::Accel,
    /// Print how long each step took on standard error
    #[arg(long)]
    pub timings: bool,
    /// How to reach the registry when the image is not here.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// The image, and the command to run in it instead of the image's own
    #[arg(value_name = "IMAGE [--] [COMMAND]", required = true, trailing_var_arg = true)]
    image_and_command: Vec<String>,
}

impl RunArgs {
    /// The image.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// The command after the image, empty for the image's own.
    pub fn command(&self) -> &[String] {
        after_first(&self.image_and_command)
    }
}

/// `exec`.
#[derive(Debug, Args)]
#[command(override_usage = "cloister exec [OPTIONS] NAME COMMAND...")]
pub struct ExecArgs {
    /// What the process is given.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Lift the restrictions for this process; needs a microVM that was started with --privileged
    #[arg(long)]
    pub privileged: bool,
    /// The microVM and the command
    #[arg(value_name = "NAME COMMAND", required = true, num_args = 2.., trailing_var_arg = true)]
    name_and_command: Vec<String>,
}

impl ExecArgs {
    /// The microVM.
    pub fn name(&self) -> &str {
        self.name_and_command.first().map_or("", String::as_str)
    }

    /// The command.
    pub fn command(&self) -> &[String] {
        after_first(&self.name_and_command)
    }
}

/// Everything after the first word, without the `--` that may stand between.
fn after_first(words: &[String]) -> &[String] {
    match words {
        [_, dashes, rest @ ..] if dashes == "--" => rest,
        [_, rest @ ..] => rest,
        [] => &[],
    }
}
