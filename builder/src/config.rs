//! buildkitd's command line and configuration.

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

/// What buildkitd has to know: how steps look names up, and the garbage collection that a disk of `bytes` needs. Releases before 0.17 know `keepBytes`; later ones take it for
/// `reservedSpace`, a floor, and need `maxUsedSpace`.
fn toml(bytes: u64, network: bool) -> String {
    let most = bytes / 100 * CACHE_PERCENT;
    let names = if network { "" } else { NO_NAMES };
    format!(
        "{names}[worker.oci]\n  gc = true\n  [[worker.oci.gcpolicy]]\n    all = true\n    keepBytes = {most}\n    maxUsedSpace = {most}\n"
    )
}

/// Writes the configuration into the container before it starts.
pub(crate) async fn write(agent: &Agent, container: &str, bytes: u64, network: bool) -> Result<()> {
    let archive = archive(&toml(bytes, network)).map_err(Error::Config)?;
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

/// A tar of the folder and the file, both root's.
fn archive(toml: &str) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in [("etc/buildkit/", 0o755, ""), ("etc/buildkit/buildkitd.toml", 0o644, toml)]
    {
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
        assert!(toml(4 << 30, true).contains("keepBytes = 3221225400\n"));
        assert!(toml(4 << 30, true).contains("maxUsedSpace = 3221225400\n"));
    }

    #[test]
    fn only_steps_without_a_network_are_told_that_there_are_no_names() {
        assert!(toml(1 << 30, false).starts_with("[dns]\n"));
        assert!(!toml(1 << 30, true).contains("dns"));
    }
}
