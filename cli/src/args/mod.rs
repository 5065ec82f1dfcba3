//! The command line, once: parsing, help, completions and the manual page all come from these definitions.

pub mod build;
pub mod builder;
pub mod image;
pub mod kube;
pub mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run container images in microVMs of their own, with no daemon and no root.
#[derive(Debug, Parser)]
#[command(name = "cloister", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Folder of images and virtual machines [default: /var/lib/cloister for root, else $XDG_DATA_HOME/cloister]
    #[arg(long, global = true, value_name = "DIR", env = "CLOISTER_ROOT")]
    pub root: Option<PathBuf>,
    /// Form of what is listed
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Detail of messages on standard error: error, warn, info, debug, trace, or a filter by module
    #[arg(long, global = true, value_name = "LEVEL", env = "CLOISTER_LOG", default_value = "warn")]
    pub log_level: String,
}

/// How lists and reports are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Work with the images of this machine
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run a command in a new microVM made from an image
    Run(Box<run::RunArgs>),
    /// Build an image from a Dockerfile in a microVM without a network
    Build(Box<build::BuildArgs>),
    /// Work with the caches of builds
    #[command(subcommand)]
    Builder(builder::BuilderCommand),
    /// List microVMs
    Ps(PsArgs),
    /// Run one more command in a running microVM
    Exec(run::ExecArgs),
    /// Print what a microVM's command has written
    Logs(LogsArgs),
    /// Copy files between a microVM and this machine
    Cp(CpArgs),
    /// Ask a microVM's command to end, and end it after a while
    Stop(StopArgs),
    /// Remove ended microVMs
    Rm(RmArgs),
    /// Show the console of a microVM or pod: the messages of its kernel and agent
    Console(ConsoleArgs),
    /// Work with guest kernels
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Check what this machine offers and say what is missing
    Doctor(DoctorArgs),
    /// Print versions
    Version,
    /// Print a completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff), or write the pages of all commands
    Man {
        /// Folder to write one page for each command to
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// What `kubectl cloister` does. Hidden: it speaks kubectl's words, whose -o and -n mean other things than here
    #[command(name = "kube", hide = true, disable_help_flag = true)]
    Kube {
        /// Its command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<std::ffi::OsString>,
    },
    /// The process that owns one virtual machine; started by `run`
    #[command(name = "__supervise", hide = true)]
    Supervise {
        /// Descriptor of the channel to the command that started it
        #[arg(long)]
        channel: i32,
        /// Descriptor of the lock of its folder
        #[arg(long)]
        lock: i32,
        /// Folder of the machine
        #[arg(long, allow_hyphen_values = true)]
        folder: PathBuf,
    },
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub all: bool,
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on as more is written, until the command ends
    #[arg(short, long)]
    pub follow: bool,
    /// Name of the microVM
    pub name: String,
}

/// `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// PATH, NAME:PATH, or - for a tar archive on standard input
    pub source: String,
    /// PATH, NAME:PATH, or - for a tar archive on standard output
    pub destination: String,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds to wait before the command is killed
    #[arg(short = 't', long = "time", value_name = "SECONDS", default_value_t = 10)]
    pub time: u32,
    /// Names of the microVMs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill those that still run
    #[arg(short, long)]
    pub force: bool,
    /// Names of the microVMs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Go on as more is written, until the microVM ends
    #[arg(short, long)]
    pub follow: bool,
    /// Folder of the pods' state
    #[arg(long, value_name = "DIR", env = "CLOISTER_PODS", default_value = "/run/cloister/pods")]
    pub pods: PathBuf,
    /// Name of a microVM; a pod's name, NAMESPACE/NAME, or (the beginning of) its id
    #[arg(value_name = "NAME|POD")]
    pub name: String,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also what a node needs for pods in microVMs: containerd, its configuration, cloister-node, the network
    #[arg(long)]
    pub cri: bool,
    /// Socket of containerd
    #[arg(long, requires = "cri", value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// Socket of cloister-node
    #[arg(long, requires = "cri", value_name = "SOCKET", default_value = "/run/cloister/node.sock")]
    pub node: PathBuf,
    /// Folder of the pods' state
    #[arg(long, value_name = "DIR", env = "CLOISTER_PODS", default_value = "/run/cloister/pods")]
    pub pods: PathBuf,
}

/// `kernel`.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// List the guest kernels found, best first
    Ls,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    fn run(line: &str) -> run::RunArgs {
        let cli = Cli::try_parse_from(std::iter::once("cloister").chain(line.split(' '))).unwrap();
        match cli.command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let args = run("run -it --rm debian:12 ls --rm -t --name x -- y");
        assert!(args.process.interactive && args.process.tty && args.rm && args.name.is_none());
        assert_eq!(args.image(), "debian:12");
        assert_eq!(args.command(), ["ls", "--rm", "-t", "--name", "x", "--", "y"]);
    }

    #[test]
    fn two_dashes_between_image_and_command_are_dropped() {
        assert_eq!(run("run debian -- ls -l").command(), ["ls", "-l"]);
        assert_eq!(run("run -- debian ls -l").command(), ["ls", "-l"]);
        assert_eq!(run("run -- debian -- ls -l").command(), ["ls", "-l"]);
        assert!(run("run debian").command().is_empty());
    }

    #[test]
    fn a_detached_run_cannot_remove_itself_unseen() {
        assert!(Cli::try_parse_from(["cloister", "run", "--rm", "--detach", "debian"]).is_err());
    }

    #[test]
    fn exec_keeps_the_options_of_its_command() {
        let cli = Cli::try_parse_from(["cloister", "exec", "-i", "web", "cat", "-n", "-"]).unwrap();
        let Command::Exec(args) = cli.command else { panic!() };
        assert_eq!((args.name(), args.command()), ("web", ["cat", "-n", "-"].map(str::to_owned).as_slice()));
    }
}
