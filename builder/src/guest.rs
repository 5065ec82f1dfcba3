//! What buildkitd needs in its guest, whoever has booted the machine: the command line and a pod's shim alike.

use std::time::Duration;

use cloister_protocol::v1;
use cloister_sandbox::{Agent, Sandbox, spec};

use crate::config::{self, Names};
use crate::error::{Error, Result};

/// Where buildkitd keeps its state.
pub const STATE: &str = "/var/lib/buildkit";
/// Name of the volume with it.
const VOLUME: &str = "buildkit";
/// How long buildkitd may take to end by itself, and its disk to be written back.
const GRACE: Duration = Duration::from_secs(5);

/// Mounts the disk of buildkitd's state; returns where the guest has it.
///
/// # Errors
/// When it is no ext4, or the machine has ended.
pub async fn mount_state(sandbox: &Sandbox, serial: String) -> Result<String> {
    let disk = v1::mount_volume_request::Kind::Disk(v1::DiskVolume { serial, read_only: false });
    let volume = v1::MountVolumeRequest { id: VOLUME.to_owned(), mode: 0o700, gid: 0, kind: Some(disk) };
    Ok(sandbox.while_alive(sandbox.agent().mount_volume(volume)).await?)
}

/// Unmounts that disk.
///
/// # Errors
/// When it is in use.
pub async fn unmount_state(agent: &Agent) -> Result<()> {
    Ok(agent.unmount_volume(VOLUME).await?)
}

/// What buildkitd's container is on top of its image: privileged, with `memory_bytes` for it and all steps together, and its
/// state at `state` of the guest.
pub fn wishes(memory_bytes: u64, state: String) -> spec::Wishes {
    spec::Wishes {
        entrypoint: Some("buildkitd".to_owned()),
        command: config::arguments(),
        // buildkitd then moves itself out of its cgroup's root and can give the controllers on to its steps.
        env: vec!["BUILDKIT_SETUP_CGROUPV2_ROOT=1".to_owned()],
        cwd: Some("/".to_owned()),
        hostname: "buildkit".to_owned(),
        privileged: true,
        memory_bytes: Some(memory_bytes),
        binds: vec![spec::BindMount { source: state, destination: STATE.to_owned(), read_only: false }],
        ..spec::Wishes::default()
    }
}

/// Writes buildkitd's configuration for a disk of so many bytes into its container, which has not started yet.
///
/// # Errors
/// When the guest does not take it.
pub async fn configure(agent: &Agent, container: &str, disk_bytes: u64, names: &Names) -> Result<()> {
    config::write(agent, container, disk_bytes, names).await
}

/// Takes buildkitd's container away and unmounts its disk, within a few seconds. A `kind` end lets buildkitd close its
/// databases, which survive the other one too; `ended` resolves when it has ended.
///
/// # Errors
/// When the disk was not unmounted, or the host could not write all of it: what is on it cannot be used again.
pub async fn write_back(
    sandbox: &Sandbox,
    container: &str,
    kind: bool,
    ended: impl Future<Output = ()>,
) -> Result<()> {
    let agent = sandbox.agent();
    let work = async {
        if kind {
            match agent.signal(container, "", libc::SIGTERM, false).await {
                Ok(()) => {
                    // Killed below when it takes too long.
                    let _ = tokio::time::timeout(GRACE / 2, ended).await;
                }
                Err(error) => tracing::debug!(%error, "buildkitd does not run"),
            }
        }
        agent.delete_container(container).await?;
        unmount_state(agent).await
    };
    tokio::time::timeout(GRACE, work).await.map_err(|_| Error::Busy(GRACE))??;
    if sandbox.disk_failed() { Err(Error::DiskFailed) } else { Ok(()) }
}
