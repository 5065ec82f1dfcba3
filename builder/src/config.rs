//! buildkitd's command line and configuration.

use std::net::IpAddr;

use cloister_sandbox::Agent;
use tokio::io::AsyncWriteExt;

use super::{Error, Result, SOCKET};

/// The part of the disk, in percent, that records of the cache may take; the rest is for the build itself.
const CACHE_PERCENT: u64 = 75;

/// Everything but the program's name.
pub(crate) fn arguments() -> Vec<String> {
    let socket = format!("--addr=unix://{SOCKET}");
    [
        socket.as_str(),
        "--config=/etc/buildkit/buildkitd.toml",
        "--containerd-worker=false",
        "--oci-worker=true",
        "--oci-worker-snapshotter=overlayfs",
        // Steps share the guest's network, which is a loopback and nothing else unless one was plugged.
        "--oci-worker-net=host",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Names for steps of a machine without a network: a server that refuses at once, and that nobody asks twice. Not every C library
/// hears of a refusal; the others then wait for one second instead of five. BuildKit would put the public servers that it has built in
/// in the place of a loopback address, and of no address.
const NO_NAMES: &str = "[dns]\n  nameservers = [\"0.0.0.0\"]\n  options = [\"timeout:1\", \"attempts:1\"]\n";

/// Whom steps ask for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Nobody: the machine has no network.
    None,
    /// The servers in the resolv.conf that buildkitd's container has.
    Container,
    /// These.
    Servers(Vec<IpAddr>),
}

/// What buildkitd has to know: how steps look names up, and the garbage collection that a disk of `bytes` needs. Releases before 0.17 know `keepBytes`; later ones take it for
/// `reservedSpace`, a floor, and need `maxUsedSpace`.
fn toml(bytes: u64, names: &Names) -> String {
    let most = bytes / 100 * CACHE_PERCENT;
    let names = if *names == Names::None { NO_NAMES } else { "" };
    format!(
        "{names}[worker.oci]\n  gc = true\n  [[worker.oci.gcpolicy]]\n    all = true\n    keepBytes = {most}\n    maxUsedSpace = {most}\n"
    )
}

/// Writes the configuration into the container before it starts.
pub(crate) async fn write(agent: &Agent, container: &str, bytes: u64, names: &Names) -> Result<()> {
    let archive = archive(&toml(bytes, names), names).map_err(Error::Config)?;
    let (stream, mut connection) = agent.open_stream().await?;
    let send = async {
        // When the agent gives up, its answer says why. The connection is kept open until then.
        if connection.write_all(&archive).await.is_ok() {
            let _ = connection.shutdown().await;
        }
        connection
    };
    tokio::join!(agent.copy_in(container, "/", stream), send).0?;
    Ok(())
}

/// A tar of the folder and the files, all root's.
fn archive(toml: &str, names: &Names) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entries = vec![("etc/buildkit/", 0o755, ""), ("etc/buildkit/buildkitd.toml", 0o644, toml)];
    let mut servers = String::new();
    if let Names::Servers(list) = names {
        servers.extend(list.iter().map(|server| format!("nameserver {server}\n")));
        // BuildKit gives it to steps, and asks those servers itself.
        entries.push(("etc/resolv.conf", 0o644, &servers));
    }
    for (name, mode, content) in entries {
        let mut header = tar::Header::new_ustar();
        let folder = name.ends_with('/');
        header.set_entry_type(if folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes())?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkitd_listens_on_its_socket_only() {
        let addresses: Vec<_> = arguments().into_iter().filter(|one| one.starts_with("--addr")).collect();
        assert_eq!(addresses, ["--addr=unix:///run/buildkit/buildkitd.sock"]);
    }

    #[test]
    fn the_cache_may_take_three_quarters_of_its_disk() {
        assert!(toml(4 << 30, &Names::Container).contains("keepBytes = 3221225400\n"));
        assert!(toml(4 << 30, &Names::Container).contains("maxUsedSpace = 3221225400\n"));
    }

    #[test]
    fn only_steps_without_a_network_are_told_that_there_are_no_names() {
        assert!(toml(1 << 30, &Names::None).starts_with("[dns]\n"));
        assert!(!toml(1 << 30, &Names::Container).contains("dns"));
    }

    #[test]
    fn servers_are_written_where_steps_and_buildkitd_find_them() {
        let named = |names: &Names| {
            let archive = archive("", names).unwrap();
            String::from_utf8_lossy(&archive).contains("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
        };
        let servers = ["192.0.2.53", "2001:db8::53"].map(|server| server.parse().unwrap());
        assert!(named(&Names::Servers(servers.to_vec())));
        assert!(!named(&Names::Container) && !named(&Names::None));
    }
}
