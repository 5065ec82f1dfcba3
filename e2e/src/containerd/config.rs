//! The configuration files of a lab: containerd's in both dialects, and CNI's.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Version;
use crate::pod_images::PAUSE;
use crate::{node, pod_images};

/// The largest packet of the pods' network, smaller than usual so that a test sees it arrive in the guest.
pub const MTU: u16 = 1400;
/// The bridge's own addresses in a lab that is no node of a cluster.
pub const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];
/// The interface that a cluster's node has to the others.
pub const VETH: &str = "uplink";

/// The addresses of a lab's pods: 0 for a lab by itself, another number for each node of a cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subnets(pub u8);

impl Subnets {
    /// The range of each family.
    pub fn ranges(self) -> [String; 2] {
        let number = self.0;
        [format!("10.88.{number}.0/24"), format!("fd88:0:0:{number}::/64")]
    }
}

/// Where every registry name leads; [`super::registry`] serves there.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// Writes `containerd.toml` and the CNI network into the lab's folder.
pub fn write(root: &Path, version: Version, with_node: bool, subnets: Subnets) -> Result<()> {
    let text = match version {
        Version::V1_7 => v2_dialect(root, with_node),
        Version::V2_1 => v3_dialect(root, with_node),
    };
    fs::write(root.join("containerd.toml"), text)?;
    write_network(root, subnets)?;
    let mirrors = root.join("certs.d/_default");
    fs::create_dir_all(&mirrors)?;
    fs::write(mirrors.join("hosts.toml"), format!("server = \"http://{REGISTRY}\"\n"))?;
    Ok(())
}

/// Writes the CNI network alone.
pub fn write_network(root: &Path, subnets: Subnets) -> Result<()> {
    Ok(fs::write(root.join("cni/10-lab.conflist"), network(root, subnets))?)
}

/// Bridge, dual stack, host ports and bandwidth limits. Everything is in the cell's network namespace, so names and
/// subnets are the same in every lab.
fn network(root: &Path, subnets: Subnets) -> String {
    let [v4, v6] = subnets.ranges();
    let ipam = root.join("cni/ipam");
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "lab", "plugins": [
 {{"type": "bridge", "bridge": "lab0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": {MTU},
  "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]],
   "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
 {{"type": "portmap", "capabilities": {{"portMappings": true}}}},
 {{"type": "bandwidth", "capabilities": {{"bandwidth": true}}}}]}}"#,
        ipam.display()
    )
}

/// What an administrator has written who knows nothing of microVMs. `places` are the keys before the plugins'.
pub fn ordinary(root: &Path, version: Version, places: &str) -> String {
    let root = root.display();
    let head = format!("# Node of the lab: ask before you change anything here.\n{places}");
    match version {
        Version::V1_7 => format!(
            "version = 2\n{head}[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\" # of the lab\n  \
             disable_apparmor = true\n  tolerate_missing_hugetlb_controller = true\n  restrict_oom_score_adj = true\n  \
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n    conf_dir = \"{root}/cni\"\n"
        ),
        Version::V2_1 => format!(
            "version = 3\n{head}[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{PAUSE}\" # of the lab\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\n  disable_apparmor = true\n  tolerate_missing_hugetlb_controller = true\n  \
             restrict_oom_score_adj = true\n  [plugins.\"io.containerd.cri.v1.runtime\".cni]\n    bin_dirs = [\"/usr/lib/cni\"]\n    \
             conf_dir = \"{root}/cni\"\n"
        ),
    }
}

/// The proxy plugins of `cloister-node`, and the order in which differs are asked.
fn proxies(root: &Path, with_node: bool) -> String {
    if !with_node {
        return String::new();
    }
    let socket = node::socket(root);
    let socket = socket.display();
    format!(
        r#"
[proxy_plugins.cloister]
  type = "snapshot"
  address = "{socket}"
[proxy_plugins.cloister-diff]
  type = "diff"
  address = "{socket}"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["cloister-diff", "walking"]
"#
    )
}

/// What both dialects begin with.
fn head(root: &Path) -> String {
    let root = root.display();
    format!(
        r#"root = "{root}/containerd"
state = "/run/containerd"
[grpc]
  address = "{root}/containerd.sock"
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"#
    )
}

/// The runtimes, below the given plugin's table.
fn runtimes(table: &str, sandboxers: bool, with_node: bool) -> String {
    let layers = if with_node { "cloister" } else { "overlayfs" };
    let mut text = format!(
        r#"[{table}.runc]
  runtime_type = "io.containerd.runc.v2"
  [{table}.runc.options]
    SystemdCgroup = false
[{table}.runc-layers]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "{layers}"
"#
    );
    let mut handlers =
        vec![("cloister", layers, "podsandbox"), ("cloister-overlayfs", "overlayfs", "podsandbox")];
    if sandboxers {
        handlers.push(("cloister-sandbox", layers, "shim"));
    }
    for (name, snapshotter, sandboxer) in handlers {
        text += &format!(
            r#"[{table}.{name}]
  runtime_type = "io.containerd.cloister.v2"
  snapshotter = "{snapshotter}"
  pod_annotations = ["cloister.dev/*"]
  container_annotations = ["cloister.dev/*"]
  privileged_without_host_devices = true
"#
        );
        if sandboxers {
            text += &format!("  sandboxer = \"{sandboxer}\"\n");
        }
    }
    text
}

fn v2_dialect(root: &Path, with_node: bool) -> String {
    format!(
        r#"version = 2
{}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "overlayfs"
    disable_snapshot_annotations = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{}/certs.d"
{}{}"#,
        head(root),
        pod_images::PAUSE,
        root.display(),
        root.display(),
        runtimes(r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes"#, false, with_node),
        proxies(root, with_node)
    )
}

fn v3_dialect(root: &Path, with_node: bool) -> String {
    format!(
        r#"version = 3
{}
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  disable_snapshot_annotations = false
  use_local_image_pull = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
{}{}{}"#,
        head(root),
        pod_images::PAUSE,
        root.display(),
        root.display(),
        runtimes(r#"plugins."io.containerd.cri.v1.runtime".containerd.runtimes"#, true, with_node),
        image_platforms(with_node),
        proxies(root, with_node)
    )
}

/// In 2.x the image service has its own idea of a handler's snapshotter.
fn image_platforms(with_node: bool) -> String {
    if !with_node {
        return String::new();
    }
    // The transfer service, which `ctr` imports with, takes the first of these unless told otherwise.
    let unpack = [("overlayfs", "walking"), ("cloister", "cloister-diff")].map(|(snapshotter, differ)| {
        format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux/amd64\"\n  \
             snapshotter = \"{snapshotter}\"\n  differ = \"{differ}\"\n"
        )
    });
    let platforms = ["cloister", "cloister-sandbox", "runc-layers"].map(|handler| {
        format!(
            "[plugins.\"io.containerd.cri.v1.images\".runtime_platforms.{handler}]\n  \
             snapshotter = \"cloister\"\n  platform = \"linux/amd64\"\n"
        )
    });
    unpack.concat() + &platforms.concat()
}
