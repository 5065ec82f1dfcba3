//! What a node needs beside containerd: `cloister-node`, traffic control and nftables, cgroups; and what was left behind.

use std::os::unix::net::UnixStream;
use std::path::Path;

use cloister_netlink::{Netlink, Request};

use super::Check;
use crate::vm::pods;

/// Bytes of `struct tcmsg` and `struct nfgenmsg`.
const TCMSG: usize = 20;
const NFGENMSG: usize = 4;
/// Leftovers that are named; the others are counted.
const NAMED: usize = 4;

/// Everything; `layers` when the handler needs `cloister-node`.
pub fn checks(node: &Path, layers: bool, pods: &Path) -> Vec<Check> {
    vec![daemon(node, layers), traffic_control(), nftables(), cgroups(), leftovers(pods)]
}

fn daemon(socket: &Path, needed: bool) -> Check {
    const NAME: &str = "cloister-node";
    let error = match UnixStream::connect(socket) {
        Ok(_) => return Check::ok(NAME, format!("{} answers", socket.display())),
        Err(error) => format!("{}: {error}", socket.display()),
    };
    let fix = "systemctl enable --now cloister-node.socket (as root), or say where it listens with --node";
    if needed {
        Check::missing(NAME, error, fix)
    } else {
        Check::warning(NAME, format!("{error}; the handler does not use it"), fix)
    }
}

/// Whether the kernel has traffic control; the parts for a redirection can only be seen by making one.
fn traffic_control() -> Check {
    const NAME: &str = "tc";
    let list = || Netlink::route()?.dump(Request::new(libc::RTM_GETQDISC, 0, &[0; TCMSG]));
    match list() {
        Ok(_) => Check::ok(NAME, "the kernel has traffic control; its u32 and mirred show only in use"),
        Err(error) => Check::missing(
            NAME,
            format!("traffic control: {error}"),
            "a kernel with CONFIG_NET_SCHED, NET_SCH_INGRESS, NET_CLS_U32 and NET_ACT_MIRRED",
        ),
    }
}

/// Port-forward alone needs them.
fn nftables() -> Check {
    const NAME: &str = "nftables";
    let tables = ((libc::NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_GETTABLE) as u16;
    let list = || Netlink::netfilter()?.dump(Request::new(tables, 0, &[0; NFGENMSG]));
    match list() {
        Ok(_) => Check::ok(NAME, "the kernel has nf_tables"),
        Err(error) if error.is(libc::EPERM) => {
            Check::warning(NAME, "only root can see whether the kernel has nf_tables", "run this as root")
        }
        Err(error) => Check::warning(
            NAME,
            format!("nf_tables: {error}; kubectl port-forward does not work"),
            "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_INET and NFT_REDIR",
        ),
    }
}

fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Check::ok(NAME, "version 2")
    } else if Path::new("/sys/fs/cgroup/memory").exists() {
        Check::ok(NAME, "version 1")
    } else {
        Check::missing(
            NAME,
            "nothing is mounted on /sys/fs/cgroup",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    }
}

/// Pods whose shim died, which containerd would have cleaned up had it been there.
fn leftovers(folder: &Path) -> Check {
    const NAME: &str = "leftovers";
    let all = match pods::list(folder) {
        Ok(all) => all,
        Err(error) => {
            return Check::warning(
                NAME,
                format!("{error:#}"),
                "run this as root, or name the folder with --pods",
            );
        }
    };
    let dead: Vec<String> =
        all.iter().filter(|pod| !pod.is_alive()).map(|pod| pod.folder.display().to_string()).collect();
    if dead.is_empty() {
        return Check::ok(NAME, format!("none; {} pods live", all.len()));
    }
    let more = if dead.len() > NAMED { ", …" } else { "" };
    Check::warning(
        NAME,
        format!("{} of pods without a shim: {}{more}", dead.len(), dead[..dead.len().min(NAMED)].join(", ")),
        "for each NAMESPACE/ID: containerd-shim-cloister-v2 -namespace NAMESPACE -id ID delete (as root)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    #[test]
    fn state_of_a_dead_shim_is_left_over() {
        let dir = std::env::temp_dir().join(format!("cloister-doctor-unit-{}", std::process::id()));
        assert_eq!(leftovers(&dir).verdict, Verdict::Ok);
        let folder = dir.join("k8s.io/abcdef");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("state.json"), r#"{"shim": {"pid": 1, "started": 0}}"#).unwrap();
        let check = leftovers(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(
            check.detail.starts_with("1 of ") && check.detail.ends_with("k8s.io/abcdef"),
            "{}",
            check.detail
        );
    }
}
