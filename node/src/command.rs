//! What else the program does than to serve containerd: the builds of this node, and their images by hand.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use cloister_image::Digest;
use tokio::io::AsyncRead;

use crate::builds;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::import::{Importer, Ready, Request};
use crate::{install, standby};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Drive the builds of this node, beside the daemon
    Builds(builds::Args),
    /// The images of builds in containerd's image store
    #[command(subcommand)]
    Image(Image),
    /// Put the runtime on this node and have containerd know it
    Install(install::Install),
    /// Give containerd its configuration back and remove the runtime
    Uninstall(install::Uninstall),
    /// Answer containerd's differ while the daemon is away, so that other runtimes go on unpacking images
    Standby,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import an OCI archive, so that pods can use it without a registry
    Import {
        #[command(flatten)]
        wanted: Wanted,
        /// The archive [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Most bytes of the archive
        #[arg(long, value_name = "BYTES", default_value_t = 64 << 30)]
        limit: u64,
    },
    /// Fetch an image from another node
    Fetch {
        #[command(flatten)]
        wanted: Wanted,
        /// The other node's `images_address`
        #[arg(long, value_name = "HOST:PORT")]
        from: String,
    },
    /// List the images of builds
    Ls,
    /// Bring back what is missing of a build's image, or of all
    Ensure {
        /// `NAMESPACE/NAME` of the build
        build: Option<String>,
    },
    /// Keep a build's image from the kubelet's garbage collection
    Pin {
        /// `NAMESPACE/NAME` of the build
        build: String,
    },
    /// Leave a build's image to the kubelet's garbage collection
    Unpin {
        /// `NAMESPACE/NAME` of the build
        build: String,
    },
    /// Remove the image of a build
    Rm {
        /// `NAMESPACE/NAME` of the build
        build: String,
    },
}

/// An image to get.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Names to give; a name without a tag gets the digest's first 12 digits
    #[arg(required = true, value_name = "NAME[:TAG]")]
    names: Vec<String>,
    /// Digest of its index or manifest, as the build said it
    #[arg(long)]
    digest: Digest,
    /// Build it belongs to; builds of one namespace may take names from each other
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "local/image")]
    build: String,
    /// Uid of its `ImageBuild`: where builds are driven, the image goes when that does
    #[arg(long, value_name = "UID")]
    object: Option<String>,
    /// Keep it from the kubelet's garbage collection
    #[arg(long)]
    pin: bool,
    /// Take names also from images that no build made
    #[arg(long)]
    replace: bool,
}

impl From<Wanted> for Request {
    fn from(wanted: Wanted) -> Self {
        let Wanted { names, digest, build, object, pin, replace } = wanted;
        Self { build, object, names, digest, pin, replace }
    }
}

/// Does it.
pub async fn run(command: Command, config: Config) -> Result<()> {
    match command {
        Command::Builds(args) => builds::run(args, config).await,
        Command::Image(command) => image(command, &config).await,
        Command::Install(args) => install::install(&args, &config).await,
        Command::Uninstall(args) => install::uninstall(&args, &config).await,
        Command::Standby => standby::run(&config.address).await,
    }
}

async fn image(image: Image, config: &Config) -> Result<()> {
    let importer = Importer::new(Containerd::new(config.containerd.clone())?, config);
    match image {
        Image::Import { wanted, input, limit } => {
            let from: Box<dyn AsyncRead + Unpin> = match &input {
                Some(path) => {
                    let file = tokio::fs::File::open(path).await;
                    Box::new(file.with_context(|| format!("cannot open {}", path.display()))?)
                }
                None => Box::new(stdin()?),
            };
            print(&importer.import(&wanted.into(), from, limit).await?);
        }
        Image::Fetch { wanted, from } => print(&importer.fetch(&wanted.into(), &from).await?),
        Image::Ls => {
            for record in importer.records().await? {
                let pinned = if record.pin { " pinned" } else { "" };
                println!("{} {} {}{pinned}", record.build, record.top.digest, record.names.join(","));
            }
        }
        Image::Ensure { build } => ensure(&importer, build.as_deref()).await?,
        Image::Pin { build } => importer.pin(&build, true).await?,
        Image::Unpin { build } => importer.pin(&build, false).await?,
        Image::Rm { build } => importer.remove(&build).await?,
    }
    Ok(())
}

async fn ensure(importer: &Importer, build: Option<&str>) -> Result<()> {
    importer.sweep().await?;
    let records = match build {
        Some(build) => vec![importer.record(build).await?],
        None => importer.records().await?,
    };
    for record in records {
        let restored = importer.ensure(&record).await.with_context(|| format!("build {}", record.build))?;
        println!("{} {}", record.build, if restored { "restored" } else { "complete" });
    }
    Ok(())
}

/// Read on a thread that may block, as any file.
fn stdin() -> Result<tokio::fs::File> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("cannot use standard input")?;
    Ok(tokio::fs::File::from_std(stdin.into()))
}

fn print(ready: &Ready) {
    for name in &ready.names {
        println!("{name} {} {}", ready.digest, ready.id);
    }
}
