//! `cloister build`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::image::RegistryArgs;
use crate::value;

/// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The Dockerfile; - reads it from standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name of the image; can be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
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
    /// Give a secret to steps that mount it: id=NAME,src=FILE or id=NAME,env=VARIABLE
    #[arg(long = "secret", value_name = "SECRET")]
    pub secrets: Vec<String>,
    /// Give an SSH agent to steps that mount it: default or ID[=SOCKET]
    #[arg(long, value_name = "AGENT")]
    pub ssh: Vec<String>,
    /// Network of the steps
    #[arg(long, value_enum, default_value_t = Network::None)]
    pub network: Network,
    /// Name server of the steps with --network egress; can be repeated [default: this machine's]
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<std::net::IpAddr>,
    /// Builds of one key share what they have built before
    #[arg(long, value_name = "KEY", default_value = "default")]
    pub cache_key: String,
    /// Most bytes the cache of a key may take on disk [default: 20g, or all that caches may take if that is less]
    #[arg(long, value_name = "BYTES", value_parser = value::size)]
    pub cache_size: Option<u64>,
    /// Look into this cache too: type=registry,ref=NAME or type=local,src=DIR; can be repeated
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,
    /// Write a cache for others: type=registry,ref=NAME or type=local,dest=DIR, and mode=min|max; can be repeated
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,
    /// Build every step again
    #[arg(long)]
    pub no_cache: bool,
    /// Pull the images it begins from although they are here
    #[arg(long)]
    pub pull: bool,
    /// Attach how the image was made
    #[arg(long, value_enum, default_value_t = Provenance::None)]
    pub provenance: Provenance,
    /// How progress is shown on standard error
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub progress: ProgressMode,
    /// Write the result as files: type=oci|docker|local|tar,dest=PATH; - is standard output
    #[arg(short = 'o', long = "out", value_name = "OUTPUT")]
    pub out: Option<String>,
    /// Memory of the build (b, k, m or g); the microVM gets what its kernel needs on top
    #[arg(short, long, value_name = "MEMORY", value_parser = value::size, default_value = "2g")]
    pub memory: u64,
    /// Processors of the build
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Most seconds a build may take, once its machine is up
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Print how long each part took on standard error
    #[arg(long)]
    pub timings: bool,
    /// The builder image: an OCI archive, or the reference of a moby/buildkit image [default: the one built by `make builder`]
    #[arg(long, value_name = "FILE|REF", env = "CLOISTER_BUILDER")]
    pub builder: Option<String>,
    /// Folder with the guest kernel to boot
    #[arg(long, value_name = "DIR", env = "CLOISTER_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// auto, kvm, or tcg (emulation); auto warns when it has to emulate
    #[arg(long, value_name = "ACCEL", env = "CLOISTER_ACCEL", default_value = "auto")]
    pub accel: cloister_vmm::Accel,
    /// How to reach the registries of images that are not here.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// The folder with the files of the build
    #[arg(value_name = "CONTEXT")]
    pub context: PathBuf,
}

/// Networks of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A loopback and nothing else.
    None,
    /// What this machine reaches apart from itself; in a cluster, what the build's pod reaches.
    Egress,
}

/// How much of its making goes with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Provenance {
    /// Nothing.
    None,
    /// Sources, and parameters that are not secret.
    Min,
    /// Everything, arguments included.
    Max,
}

/// Forms of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// For people on a terminal, lines otherwise.
    Auto,
    /// One line for each thing that happens.
    Plain,
    /// One JSON document a line.
    Json,
}
