//! What the daemon is told: the command line first, then its file, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Deserialize;

use crate::command::Command;
use crate::metrics::Address;

/// The file that is read when none is named; it need not exist.
const PATH: &str = "/etc/cloister/node.toml";

/// The node daemon: serves containerd's `cloister` snapshotter and `cloister-diff` differ, and metrics.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
    /// File with settings; each can also be given here [default: /etc/cloister/node.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of images and snapshots [default: /var/lib/cloister]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Socket to serve containerd on [default: /run/cloister/node.sock]
    #[arg(long, global = true, value_name = "PATH")]
    address: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    containerd: Option<PathBuf>,
    /// Where to serve /metrics: IP:PORT or unix:PATH [default: nowhere]
    #[arg(long, global = true, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// Folder of the pods' state [default: /run/cloister/pods]
    #[arg(long, global = true, value_name = "DIR")]
    pods: Option<PathBuf>,
    /// Keep each pod's metrics apart, by namespace and pod id
    #[arg(long, global = true)]
    pod_labels: bool,
    /// Where other nodes get the images of builds: IP:PORT [default: nowhere]
    #[arg(long, global = true, value_name = "ADDRESS")]
    images_address: Option<SocketAddr>,
    /// Folder with tls.crt, tls.key and ca.crt of the nodes; needed to give images to other nodes and to get them
    #[arg(long, global = true, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, or a filter as in RUST_LOG [default: info]
    #[arg(long, global = true, value_name = "FILTER")]
    log_level: Option<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    address: Option<PathBuf>,
    containerd: Option<PathBuf>,
    metrics_address: Option<String>,
    pods: Option<PathBuf>,
    pod_labels: bool,
    fetch_always: bool,
    local_sources: bool,
    images_address: Option<SocketAddr>,
    tls: Option<PathBuf>,
    snapshotters: Option<Vec<String>>,
    kubelet_config: Option<PathBuf>,
    log_level: Option<String>,
}

/// All settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of images and snapshots.
    pub root: PathBuf,
    /// Socket to serve on.
    pub address: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// Where to serve metrics.
    pub metrics: Option<Address>,
    /// Folder of the pods' state.
    pub pods: PathBuf,
    /// Whether metrics tell pods apart.
    pub pod_labels: bool,
    /// Let containerd fetch layers that are in the store already.
    pub fetch_always: bool,
    /// Let sources of builds come from this node's loopback and link-local addresses.
    pub local_sources: bool,
    /// Where other nodes get the images of builds.
    pub images: Option<SocketAddr>,
    /// Folder with the certificates of the nodes.
    pub tls: Option<PathBuf>,
    /// Whose snapshots an image needs to be ready.
    pub snapshotters: Vec<String>,
    /// The kubelet's configuration.
    pub kubelet: PathBuf,
    /// What is logged.
    pub log_level: String,
}

impl Args {
    /// Reads the file and fills in defaults.
    pub fn settle(self) -> Result<Config> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None if Path::new(PATH).exists() => read(Path::new(PATH))?,
            None => File::default(),
        };
        let path = |arg: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            let path = arg.or(file).unwrap_or_else(|| default.into());
            std::path::absolute(&path).with_context(|| format!("cannot use {}", path.display()))
        };
        let images = self.images_address.or(file.images_address);
        let tls = self.tls.or(file.tls);
        if images.is_some() && tls.is_none() {
            bail!("images_address without tls: anybody could have the images");
        }
        let metrics = self.metrics_address.or(file.metrics_address).map(|text| {
            text.parse::<Address>().map_err(|why| anyhow::anyhow!("metrics address {text:?}: {why}"))
        });
        Ok(Config {
            root: path(self.root, file.root, "/var/lib/cloister")?,
            address: path(self.address, file.address, "/run/cloister/node.sock")?,
            containerd: path(self.containerd, file.containerd, "/run/containerd/containerd.sock")?,
            metrics: metrics.transpose()?,
            pods: path(self.pods, file.pods, "/run/cloister/pods")?,
            pod_labels: self.pod_labels || file.pod_labels,
            fetch_always: file.fetch_always,
            local_sources: file.local_sources,
            images,
            tls,
            snapshotters: file.snapshotters.unwrap_or_else(|| vec!["cloister".to_owned()]),
            kubelet: file.kubelet_config.unwrap_or_else(|| "/var/lib/kubelet/config.yaml".into()),
            log_level: self.log_level.or(file.log_level).unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_file_and_both_before_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(
            &path,
            "root = \"/from/file\"\naddress = \"/file.sock\"\nmetrics_address = \"127.0.0.1:1\"\n",
        )
        .unwrap();
        let name = path.to_str().unwrap();
        let args = Args::parse_from(["cloister-node", "--config", name, "--root", "/from/line"]);
        let config = args.settle().unwrap();
        assert_eq!(config.root, Path::new("/from/line"));
        assert_eq!(config.address, Path::new("/file.sock"));
        assert_eq!(config.containerd, Path::new("/run/containerd/containerd.sock"));
        assert_eq!(config.metrics, Some("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn images_are_not_served_to_everybody() {
        let args = ["cloister-node", "--config", "/dev/null", "--images-address", "127.0.0.1:1"];
        assert!(Args::parse_from(args).settle().unwrap_err().to_string().contains("tls"));
        let config = Args::parse_from([&args[..], &["--tls", "/tls"]].concat()).settle().unwrap();
        assert_eq!(config.images, Some(([127, 0, 0, 1], 1).into()));
    }

    #[test]
    fn unknown_settings_are_refused_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, "roott = \"/x\"\n").unwrap();
        let error =
            Args::parse_from(["cloister-node", "--config", path.to_str().unwrap()]).settle().unwrap_err();
        assert!(
            format!("{error:#}").contains("roott") && format!("{error:#}").contains("node.toml"),
            "{error:#}"
        );
    }

    #[test]
    fn the_example_file_is_valid() {
        let args = Args::parse_from([
            "cloister-node",
            "--config",
            concat!(env!("CARGO_MANIFEST_DIR"), "/node.toml"),
        ]);
        args.settle().unwrap();
    }
}
