//! Where the containerd of a node is: on its own, or as a part of k3s or RKE2, which have folders of their own and make
//! its configuration again at each start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::containerd;
use super::files;
use super::restart::Restart;

/// Folder, and units for servers and for agents, of what brings a containerd along.
const DISTRIBUTIONS: [(&str, [&str; 2]); 2] = [
    ("var/lib/rancher/rke2", ["rke2-server.service", "rke2-agent.service"]),
    ("var/lib/rancher/k3s", ["k3s.service", "k3s-agent.service"]),
];
/// The socket of either's containerd.
const SOCKET: &str = "run/k3s/containerd/containerd.sock";

/// Where a containerd has what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its main configuration file.
    pub main: PathBuf,
    /// Our drop-in.
    pub drop_in: PathBuf,
    /// The main file is made again at each start: it is read and never changed.
    pub generated: bool,
    /// How it is restarted.
    pub restart: Restart,
    /// Its socket, where that is not containerd's own default.
    pub socket: Option<PathBuf>,
}

impl Place {
    /// The place on the machine whose files are below `root`.
    pub fn found(root: &Path) -> Result<Self> {
        for (folder, units) in DISTRIBUTIONS {
            let main = root.join(folder).join("agent/etc/containerd/config.toml");
            if let Some(text) = files::read(&main)? {
                let document = containerd::parse(&text, &main)?;
                let format = containerd::Format::of(&document, 2);
                let format = format.with_context(|| format!("cannot use {}", main.display()))?;
                // They import what is there, each file in the folder of its version.
                let beside = match format {
                    containerd::Format::V2 => "config.toml.d",
                    containerd::Format::V3 => "config-v3.toml.d",
                };
                return Ok(Self {
                    drop_in: main.with_file_name(beside).join("cloister.toml"),
                    main,
                    generated: true,
                    restart: Restart::Systemd(units.map(str::to_owned).to_vec()),
                    socket: Some(root.join(SOCKET)),
                });
            }
        }
        Ok(Self::plain(root.join("etc/containerd/config.toml")))
    }

    /// A containerd on its own with this main file, which need not exist.
    pub fn plain(main: PathBuf) -> Self {
        Self {
            drop_in: main.with_file_name("conf.d").join("cloister.toml"),
            main,
            generated: false,
            restart: Restart::Systemd(vec!["containerd.service".to_owned()]),
            socket: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(file: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        files::write(&root.path().join(file), text).unwrap();
        root
    }

    #[test]
    fn a_plain_containerd_has_one_folder() {
        for root in [tempfile::tempdir().unwrap(), machine("etc/containerd/config.toml", "version = 2\n")] {
            let place = Place::found(root.path()).unwrap();
            assert_eq!(place, Place::plain(root.path().join("etc/containerd/config.toml")));
            assert_eq!(place.drop_in, root.path().join("etc/containerd/conf.d/cloister.toml"));
            assert_eq!(place.restart.to_string(), "systemd:containerd.service");
        }
    }

    #[test]
    fn k3s_and_rke2_bring_theirs_along() {
        for (name, units) in [
            ("k3s", "systemd:k3s.service,k3s-agent.service"),
            ("rke2", "systemd:rke2-server.service,rke2-agent.service"),
        ] {
            for (version, drop_ins) in [(2, "config.toml.d"), (3, "config-v3.toml.d")] {
                let folder = format!("var/lib/rancher/{name}/agent/etc/containerd");
                let root = machine(&format!("{folder}/config.toml"), &format!("version = {version}\n"));
                // A containerd of the distribution may be there as well, and runs no pods.
                files::write(&root.path().join("etc/containerd/config.toml"), "version = 2\n").unwrap();
                let place = Place::found(root.path()).unwrap();
                assert_eq!(place.main, root.path().join(&folder).join("config.toml"));
                assert_eq!(place.drop_in, root.path().join(&folder).join(drop_ins).join("cloister.toml"));
                assert!(place.generated);
                assert_eq!(place.restart.to_string(), units);
                assert_eq!(place.socket, Some(root.path().join(SOCKET)));
            }
        }
    }

    #[test]
    fn a_file_that_is_not_understood_is_named() {
        let root = machine("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "version = 1\n");
        let error = format!("{:#}", Place::found(root.path()).unwrap_err());
        assert!(error.contains("rancher/k3s"), "{error}");
    }
}
