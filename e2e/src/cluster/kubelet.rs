//! A kubelet 1.20 in the cell of its containerd.
//!
//! It speaks CRI v1alpha2. containerd 2.x knows only v1, so there a kubelet runs whose service has the new name and whose
//! messages are the old ones (`scripts/kubernetes.sh`): what newer kubelets send besides does not arrive in this lab.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Cluster, Daemon, programs};
use crate::containerd::{Containerd, Version};
use crate::pod_images::PAUSE;
use crate::sweep;

/// What a kubelet writes into the machine's settings unless it is there already. In the cell it is: over each file lies
/// another one.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Folders whose names are fixed in a kubelet.
const FIXED: [&str; 2] = ["/var/log", "/var/lib/kubelet"];

/// The folder of a node's kubelet.
pub fn root(lab: &Containerd) -> PathBuf {
    lab.root().join("kubelet")
}

/// The settings of a node's kubelet.
pub fn config(lab: &Containerd) -> PathBuf {
    lab.root().join("kubelet.yaml")
}

/// Prepares a node's cell for a kubelet, which is not started yet.
pub fn prepare(cluster: &Cluster, name: &str, address: &str, lab: &mut Containerd) -> Result<Daemon> {
    let cell = &lab.cell;
    for folder in FIXED {
        cell.run("mkdir", &["-p", folder])?;
        let own = lab.root().join(folder.trim_start_matches('/').replace('/', "-"));
        fs::create_dir(&own)?;
        cell.run("mount", &["--bind", &own.to_string_lossy(), folder])?;
    }
    for (setting, value) in SETTINGS {
        let file = lab.root().join(setting.replace('/', "-"));
        fs::write(&file, format!("{value}\n"))?;
        cell.run("mount", &["--bind", &file.to_string_lossy(), &format!("/proc/sys/{setting}")])?;
    }
    cgroups(lab)?;
    let config = config(lab);
    fs::write(&config, configuration(cluster, name, address, lab)?)?;
    let program = match lab.version() {
        Version::V1_7 => "kubelet",
        Version::V2_1 => "kubelet-cri-v1",
    };
    let user = format!("system:node:{name}");
    let kubeconfig = cluster.kubeconfig_for_nodes(&user, &["system:nodes"])?;
    let socket = format!("unix://{}", lab.root().join("containerd.sock").display());
    Ok(Daemon::new("kubelet", &programs()?.join(program), lab.root())
        .path("--config", &config)
        .path("--kubeconfig", &kubeconfig)
        .path("--root-dir", &root(lab))
        .option("--hostname-override", name)
        .option("--node-ip", address)
        .option("--container-runtime", "remote")
        .option("--container-runtime-endpoint", &socket)
        .option("--pod-infra-container-image", PAUSE)
        .option("--v", "2"))
}

/// Makes the cgroup of the node's pods in every hierarchy.
pub fn cgroups(lab: &Containerd) -> Result<()> {
    for hierarchy in sweep::cgroup_folders("") {
        if hierarchy.join("cgroup.procs").exists() {
            let folder = hierarchy.join(lab.cgroup().trim_start_matches('/'));
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
    }
    Ok(())
}

fn configuration(cluster: &Cluster, name: &str, address: &str, lab: &Containerd) -> Result<String> {
    let names = format!("DNS:{name},IP:{address},IP:127.0.0.1");
    let server = cluster.pki.server(&format!("kubelet-{name}"), &[], &names)?;
    Ok(format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
readOnlyPort: 0
healthzBindAddress: 127.0.0.1
tlsCertFile: {certificate:?}
tlsPrivateKeyFile: {key:?}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {authority:?}}}}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
failSwapOn: false
makeIPTablesUtilChains: false
# Lowering it takes a privilege that test machines lack.
oomScoreAdj: 0
resolvConf: /etc/resolv.conf
volumePluginDir: {plugins:?}
# A full disk of the machine is not what is tested.
evictionHard: {{memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}}
imageGCHighThresholdPercent: 99
imageGCLowThresholdPercent: 98
nodeStatusUpdateFrequency: 5s
",
        certificate = server.certificate,
        key = server.key,
        authority = cluster.pki.authority(),
        cgroup = lab.cgroup(),
        plugins = root(lab).join("plugins"),
    ))
}
