//! `cloister image …`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::value;

/// Work with the images of this machine.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an image from a file, a folder or standard input
    Import(ImportArgs),
    /// Pull an image from a registry
    Pull(PullArgs),
    /// List images
    Ls {
        /// Also those of Cloister itself, such as the builder's
        #[arg(short, long)]
        all: bool,
    },
    /// Show everything known about an image
    Inspect {
        /// The image
        name: String,
    },
    /// Remove names; the next prune frees what no name needs
    Rm {
        /// The images
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Give an image one more name
    Tag {
        /// The image
        source: String,
        /// The new name
        destination: String,
    },
    /// Free space that no name needs
    Prune(PruneArgs),
    /// Write an image as a file
    Export(ExportArgs),
}

/// `image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The name the image gets here
    pub name: String,
    /// A docker or OCI archive (plain, gzip or zstd) or an OCI layout folder [default: standard input]
    #[arg(short = 'i', long = "input", value_name = "FILE|DIR")]
    pub input: Option<PathBuf>,
    /// OS/ARCH[/VARIANT] to choose from an index [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Layers converted at a time [default: one per processor]
    #[arg(short, long, value_name = "N", value_parser = value::jobs)]
    pub jobs: Option<usize>,
}

/// `image pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Name of the image, with :TAG or @DIGEST if wanted
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where and how to reach the registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// How to reach a registry.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// OS/ARCH[/VARIANT] to choose from an index [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Speak HTTP without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Ask this host first for images of REGISTRY (Docker Hub when left out, * for all others); http:// for plain HTTP; can be repeated
    #[arg(long = "mirror", value_name = "[REGISTRY=]URL")]
    pub mirrors: Vec<String>,
    /// File with credentials [default: docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Certificates (PEM) to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
}

/// `image prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Also images that have a name
    #[arg(long)]
    pub all: bool,
    /// Keep the newest until they reach this size (such as 500m or 2g)
    #[arg(long, value_name = "BYTES", value_parser = value::size)]
    pub keep_size: Option<u64>,
}

/// `image export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The image
    pub name: String,
    /// Form of the file
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// The file, or - for standard output (tar forms only)
    #[arg(short = 'o', long = "out-file", value_name = "FILE")]
    pub out: PathBuf,
}

/// What `image export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The whole filesystem as one read-only EROFS.
    Erofs,
    /// The whole filesystem as ext4.
    Ext4,
    /// The whole filesystem as a tar archive.
    Tar,
    /// The image as an OCI archive.
    OciArchive,
    /// The image as `docker load` reads it.
    DockerArchive,
}
