//! A node as its administrator set it up: systemd, containerd and a kubelet where they are everywhere, and nothing of
//! Cloister. What is written to `/etc`, `/opt` and `/var/lib` stays in the lab's folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use super::node::READY;
use super::{Cluster, Daemon, daemon, kubelet, network};
use crate::cell::wait_for;
use crate::containerd::config::{Subnets, ordinary, write_network};
use crate::containerd::{Containerd, Version};
use crate::pod_images::PAUSE;
use crate::systemd::Systemd;

/// Folders with something of the lab's own over them. containerd's and ours hold lower layers of further overlays.
const PLACES: &str = "set -e
for place in etc opt var/lib; do
  mkdir -p $0/upper/$place $0/work/$place
  mount -t overlay -o lowerdir=/$place,upperdir=$0/upper/$place,workdir=$0/work/$place overlay /$place
done
for folder in /var/lib/containerd /var/lib/cloister /run/containerd; do
  mkdir -p $folder $0/bound$folder
  mount --bind $0/bound$folder $folder
done
mkdir /etc/containerd";

/// Has the kubelet hold a shutdown up until its pods have ended.
const SHUTDOWN: &str = "featureGates: {GracefulNodeShutdown: true}
shutdownGracePeriod: 20s
shutdownGracePeriodCriticalPods: 5s
";
/// Who asks everybody before a shutdown, as Debian's unit has it.
const LOGIND: &str = "[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=dbus.service
[Service]
Type=dbus
BusName=org.freedesktop.login1
ExecStart=/lib/systemd/systemd-logind
RuntimeDirectory=systemd/sessions systemd/seats systemd/users systemd/inhibit systemd/shutdown
";
/// What a shutdown ends with: here nothing.
const POWEROFF: &str = "[Unit]\nDefaultDependencies=no\n";

/// A node that a test starts with [`OrdinaryNode::boot`].
pub struct OrdinaryNode {
    name: String,
    kubelet: Daemon,
    /// The cell that all of the node lives in. Its containerd is systemd's.
    pub lab: Containerd,
}

impl Cluster {
    /// Prepares a node with this containerd; nothing runs there yet. The controllers have to run.
    pub fn ordinary_node(&self, name: &str, version: Version) -> Result<OrdinaryNode> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let mut lab = Containerd::stopped(version)?;
        let root = lab.root();
        write_network(root, Subnets(number))?;
        lab.cell.run("bash", &["-c", PLACES, &root.to_string_lossy()])?;
        let config = ordinary(root, version, "");
        fs::write(lab.cell.path("/etc/containerd/config.toml"), config)?;
        symlink("bound/run/containerd/containerd.sock", root.join("containerd.sock"))?;
        network::connect(self.cell(), &lab.cell, number)?;
        network::serve_api(&lab.cell, self.relay.port())?;
        // The last of two options counts.
        let kubelet = kubelet::prepare(self, name, &network::address(number), &mut lab)?
            .option("--root-dir", "/var/lib/kubelet");
        File::options().append(true).open(kubelet::config(&lab))?.write_all(SHUTDOWN.as_bytes())?;
        Ok(OrdinaryNode { name: name.to_owned(), kubelet, lab })
    }
}

impl OrdinaryNode {
    /// Starts systemd, containerd with these images, and the kubelet, and waits until the node is ready.
    pub fn boot(&self, cluster: &Cluster, images: &[&str]) -> Result<Systemd<'_>> {
        let (containerd, kubelet) = (self.lab.ordinary_unit()?, self.kubelet.unit());
        let units = [
            ("containerd.service", containerd.as_str()),
            ("kubelet.service", &kubelet),
            ("systemd-logind.service", LOGIND),
            ("poweroff.target", POWEROFF),
        ];
        let group = self.lab.cgroup();
        let folder = self.lab.root().join("units");
        let systemd = Systemd::start(&self.lab.cell, &folder, group.trim_start_matches('/'), &units)?;
        // systemd removes empty ones when it starts, and its own hierarchy begins with the lab's cgroup.
        kubelet::cgroups(&self.lab)?;
        systemd.run("mkdir", &["-p", &format!("/sys/fs/cgroup/systemd{group}")])?;
        systemd.systemctl(&["start", "systemd-logind.service", "containerd.service"])?;
        wait_for("containerd", READY, || Ok(self.lab.cri.ready().ok()))?;
        self.lab.import(&[&[PAUSE], images].concat())?;
        systemd.systemctl(&["start", "kubelet.service"])?;
        wait_for(&format!("node {}", self.name), READY, || {
            systemd.systemctl(&["is-active", "kubelet.service"])?;
            let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let ready = cluster.try_kubectl(&["get", "node", &self.name, "-o", path])?;
            Ok((ready.stdout == b"True").then_some(()))
        })
        .with_context(|| self.complaints())?;
        Ok(systemd)
    }

    /// Asks for a shutdown, and waits until nobody holds it up any more. The node stays on.
    pub fn shut_down(&self, systemd: &Systemd<'_>) -> Result<()> {
        let logind = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
        systemd.run("busctl", &[&["call"], &logind[..], &["PowerOff", "b", "false"]].concat())?;
        wait_for("the node's shutdown", READY, || {
            Ok(systemd.systemctl(&["is-active", "poweroff.target"]).ok().map(drop))
        })
    }

    /// What the kubelet's log has of errors; one that gives up adds pages of stacks.
    fn complaints(&self) -> String {
        let all = self.kubelet.log_tail(usize::MAX);
        let serious: Vec<&str> = all.lines().filter(|line| line.starts_with(['E', 'F'])).collect();
        serious[serious.len().saturating_sub(20)..].join("\n")
    }

    /// What was written to the node's `/etc`, `/opt` and `/var/lib` since it was made: paths with kind, mode, owner and content.
    /// Not that of containerd, of pods and of images.
    pub fn written(&self) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        look(&self.lab.root().join("upper"), "", &mut found)?;
        Ok(found)
    }

    /// Prints the ends of the node's logs, for a test that has failed.
    pub fn print_logs(&self) {
        for log in ["containerd.log", "kubelet.log"] {
            eprintln!("--- the end of {log}\n{}", daemon::tail(&self.lab.root().join(log), 60));
        }
    }
}

fn look(folder: &Path, name: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let content = if metadata.is_dir() {
            look(&path, &name, found)?;
            String::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path)?.display().to_string()
        } else if metadata.is_file() {
            String::from_utf8_lossy(&fs::read(&path)?).into_owned()
        } else {
            String::new()
        };
        found.insert(name, format!("{:o} {}:{} {content}", metadata.mode(), metadata.uid(), metadata.gid()));
    }
    Ok(())
}
