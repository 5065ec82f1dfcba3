//! `kubectl cloister …`: a command line of its own, in kubectl's words.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::core::Duration;

use super::build::{Network, Provenance};

/// Build images in a cluster: each build in a microVM of its own, its image imported into nodes.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-cloister",
    bin_name = "kubectl cloister",
    version,
    max_term_width = 110,
    disable_help_subcommand = true
)]
pub struct KubeCli {
    /// Options of every command.
    #[command(flatten)]
    pub global: KubeGlobal,
    /// What to do.
    #[command(subcommand)]
    pub command: KubeCommand,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct KubeGlobal {
    /// Namespace of the builds [default: that of the context]
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long = "context", global = true, value_name = "NAME")]
    pub kube_context: Option<String>,
    /// The kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum KubeCommand {
    /// Send a folder to the cluster, build it there and wait for the image
    Build(Box<KubeBuildArgs>),
    /// Print what a build has said
    Logs(KubeLogsArgs),
    /// End the running attempt of builds; no other starts until they are retried or changed
    Cancel(Names),
    /// Build again, also what has failed or was canceled
    Retry(Names),
    /// List builds
    Ls(KubeLsArgs),
    /// Print a completion script for kubectl-cloister
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
}

/// `build`.
#[derive(Debug, Args)]
pub struct KubeBuildArgs {
    /// The Dockerfile; - reads it from standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name of the image; can be repeated
    #[arg(short, long = "tag", value_name = "NAME", required = true)]
    pub tags: Vec<String>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set an argument of the Dockerfile; without a value it is passed on from here
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub build_args: Vec<String>,
    /// Set a label of the image
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Give a secret to steps that mount it: id=ID,secret=NAME/KEY of the cluster; id=ID,src=FILE or id=ID,env=VARIABLE
    /// make a Secret that goes with the build
    #[arg(long = "secret", value_name = "SECRET")]
    pub secrets: Vec<String>,
    /// Give an SSH agent with a key to steps that mount it: as --secret
    #[arg(long, value_name = "KEY")]
    pub ssh: Vec<String>,
    /// Platform of the image, such as linux/arm64; can be repeated [default: the node's]
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub platforms: Vec<String>,
    /// Network of the steps
    #[arg(long, value_enum, default_value_t = Network::None)]
    pub network: Network,
    /// Builds of a namespace with one key share what they have built before [default: default]
    #[arg(long, value_name = "KEY")]
    pub cache_key: Option<String>,
    /// Most that this cache may take of a node, such as 20Gi
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,
    /// Look into this cache too: an image, or type=registry,ref=IMAGE; can be repeated
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,
    /// Push a cache for others: an image, or type=registry,ref=IMAGE,mode=min|max; can be repeated
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,
    /// Build every step again, and keep nothing of it
    #[arg(long)]
    pub no_cache: bool,
    /// Secret of type kubernetes.io/dockerconfigjson for base images and caches; can be repeated
    #[arg(long = "pull-secret", value_name = "NAME")]
    pub pull_secrets: Vec<String>,
    /// Attach a list of the image's packages; takes --network egress
    #[arg(long)]
    pub sbom: bool,
    /// Attach how the image was made
    #[arg(long, value_enum, default_value_t = Provenance::None)]
    pub provenance: Provenance,
    /// Labels of the nodes that get the image, such as pool=web; '' is every node [default: the node that builds, or
    /// none with --push]
    #[arg(long, value_name = "SELECTOR")]
    pub nodes: Option<String>,
    /// Push the image to this registry, such as registry.example.com/team
    #[arg(long, value_name = "REGISTRY")]
    pub push: Option<String>,
    /// Secret of type kubernetes.io/dockerconfigjson to push with
    #[arg(long, value_name = "NAME", requires = "push")]
    pub push_secret: Option<String>,
    /// Longest time of an attempt, such as 90m [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Name of the ImageBuild; one that is there is changed [default: made of the image's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Change the ImageBuild also where somebody else has set it
    #[arg(long)]
    pub force_conflicts: bool,
    /// Return as soon as the folder is there; the build goes on
    #[arg(short, long)]
    pub detach: bool,
    /// Print the ImageBuild; nothing is sent
    #[arg(long, conflicts_with = "detach")]
    pub dry_run: bool,
    /// Form of what --dry-run prints
    #[arg(short, long, value_enum, requires = "dry_run", default_value_t = ObjectFormat::Yaml)]
    pub output: ObjectFormat,
    /// Folder with the files of the build
    #[arg(value_name = "CONTEXT")]
    pub context: PathBuf,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct KubeLogsArgs {
    /// Go on as more is written, until the attempt ends
    #[arg(short, long)]
    pub follow: bool,
    /// Number of the attempt [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    pub attempt: Option<i64>,
    /// Name of the build
    pub name: String,
}

/// Builds by name.
#[derive(Debug, Args)]
pub struct Names {
    /// Names of the builds
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// `ls`.
#[derive(Debug, Args)]
pub struct KubeLsArgs {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// More columns, or the objects themselves
    #[arg(short, long, value_enum)]
    pub output: Option<ListFormat>,
}

/// Forms of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    /// As a manifest.
    Yaml,
    /// As the API has it.
    Json,
}

/// Forms of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// More columns.
    Wide,
    /// The objects.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        KubeCli::command().debug_assert();
    }
}
