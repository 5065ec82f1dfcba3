//! What a pod could leave behind in a lab whose pods are all removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::containerd::Containerd;
use crate::containerd::config::VETH;
use crate::sweep;

/// Processes of a lab that belong to it and not to a pod.
const DAEMONS: [&str; 4] = ["/containerd --config", "/cloister-node ", "/kubelet ", "/kubelet-cri-v1 "];

/// Looks for traces of pods.
pub struct Traces;

impl Traces {
    /// Everything that is there and should not be in a lab without pods, one line each, waiting for it to go.
    pub fn settled(lab: &Containerd, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let found = Self::now(lab)?;
            if found.is_empty() || Instant::now() >= deadline {
                return Ok(found.into_iter().collect());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that is there now.
    fn now(lab: &Containerd) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        processes(lab, &mut found)?;
        mounts(lab, &mut found)?;
        network(lab, &mut found)?;
        for folder in sweep::cgroup_folders(lab.cgroup().trim_start_matches('/')) {
            cgroups(&folder, &mut found);
        }
        for folder in ["/run/containerd/s", "/run/netns", "/run/cloister"] {
            files(&lab.cell.path(folder), folder, &mut found);
        }
        for kind in [
            "io.containerd.runtime.v2.task",
            "io.containerd.grpc.v1.cri",
            "io.containerd.sandbox.controller.v1.shim",
        ] {
            let folder = format!("/run/containerd/{kind}");
            files(&lab.cell.path(&folder), &folder, &mut found);
            let folder = lab.root().join("containerd").join(kind);
            files(&folder, &folder.to_string_lossy(), &mut found);
        }
        let addresses = lab.root().join("cni/ipam/lab");
        files(&addresses, "CNI address", &mut found);
        found.retain(|fact| !IGNORED.iter().any(|part| fact.contains(part)));
        Ok(found)
    }
}

/// Files that stay by design: CNI's own bookkeeping, containerd's folders that hold pods, the last figures of pods,
/// locks of machines that boot.
const IGNORED: [&str; 5] = [
    "CNI address/last_reserved_ip",
    "CNI address/lock",
    "/run/cloister/node",
    "/run/cloister/ended/",
    "/run/cloister/booting/",
];

fn processes(lab: &Containerd, found: &mut BTreeSet<String>) -> Result<()> {
    for process in lab.cell.processes()? {
        if !DAEMONS.iter().any(|daemon| process.command.contains(daemon)) {
            found.insert(format!("process {} (parent {}): {}", process.pid, process.parent, process.command));
        }
    }
    Ok(())
}

fn mounts(lab: &Containerd, found: &mut BTreeSet<String>) -> Result<()> {
    found.extend(lab.cell.mounts()?.into_iter().map(|line| format!("mount {line}")));
    Ok(())
}

fn network(lab: &Containerd, found: &mut BTreeSet<String>) -> Result<()> {
    for line in lab.cell.run("ip", &["-o", "link"])?.lines() {
        let name = line.split(": ").nth(1).unwrap_or(line);
        if ![
            "lo", "lab0", VETH, "sit0", "ip6tnl0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0",
            "ip6_vti0", "ip6gre0",
        ]
        .contains(&name.split('@').next().unwrap_or(name))
        {
            found.insert(format!("network interface {name}"));
        }
    }
    for tool in ["iptables", "ip6tables"] {
        for line in lab.cell.run(tool, &["-t", "nat", "-S"]).unwrap_or_default().lines() {
            if line.contains("CNI-DN-") {
                found.insert(format!("{tool} rule {line}"));
            }
        }
    }
    Ok(())
}

fn cgroups(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            // The kubelet makes and removes a pod's own cgroup; what is in it has to be gone.
            let name = entry.file_name().to_string_lossy().into_owned();
            let kubelets = ["kubepods", "besteffort", "burstable"].contains(&name.as_str());
            if !kubelets && !name.starts_with("pod") {
                found.insert(format!("cgroup {}", path.display()));
            }
            cgroups(&path, found);
        }
    }
}

/// Every file and socket below a folder; folders that only hold folders are no trace.
fn files(folder: &Path, name: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let before = found.len();
            files(&entry.path(), &name, found);
            if found.len() == before
                && fs::read_dir(entry.path()).is_ok_and(|mut d| d.next().is_none())
                && is_pod_id(&name)
            {
                found.insert(format!("folder {name}"));
            }
        } else {
            found.insert(format!("file {name}"));
        }
    }
}

/// Whether the last part of a path is the ID of a pod or container.
fn is_pod_id(name: &str) -> bool {
    name.rsplit('/')
        .next()
        .is_some_and(|last| last.len() == 64 && last.bytes().all(|b| b.is_ascii_hexdigit()))
}
