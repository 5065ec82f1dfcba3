//! A VM saved to a folder, and VMs made from it.
//!
//! QEMU saves the state of the machine (`x-ignore-shared` leaves the memory out, some 100 KiB remain); the memory is
//! copied by us from the memfd both share, without its holes. vhost-user devices cannot be saved, so the vsock
//! device is unplugged before and plugged in again at the first moment of every copy.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qapi::qmp::{chardev_remove, query_migrate};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use serde_json::{Value, json};

use super::args::VSOCK;
use super::{Qemu, plug};
use crate::config::VmConfig;
use crate::vmm::Vmm;
use crate::vsock::{Frontend, Transport};
use crate::{Error, Result};

/// How long the guest may take to let go of its vsock device.
const UNPLUG_LIMIT: Duration = Duration::from_secs(10);
/// How long saving or loading the machine's state may take.
const STATE_LIMIT: Duration = Duration::from_secs(30);
/// Version of the folder's layout.
const LAYOUT: u32 = 1;

/// What has to be the same in a copy: the guest has seen it.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Machine {
    layout: u32,
    memory: u64,
    max_memory: u64,
    cpus: u32,
    max_cpus: u32,
    hotplug_ports: usize,
    accel: String,
}

impl Machine {
    fn of(config: &VmConfig) -> Result<Self> {
        Ok(Self {
            layout: LAYOUT,
            memory: config.memory,
            max_memory: config.max_memory,
            cpus: config.cpus,
            max_cpus: config.max_cpus,
            hotplug_ports: config.hotplug_ports,
            accel: crate::accel::choose(config.accel)?.name().to_owned(),
        })
    }
}

/// An opened snapshot.
#[derive(Debug)]
pub(super) struct Saved {
    memory: File,
    state: OwnedFd,
}

/// Opens a snapshot and checks that it belongs to this configuration.
pub(super) fn open(folder: &Path, config: &VmConfig) -> Result<Saved> {
    let file = |name: &'static str| {
        let path = folder.join(name);
        File::open(&path).map_err(|source| Error::File { what: "snapshot file", path, source })
    };
    let machine: Machine = serde_json::from_reader(file("machine.json")?)
        .map_err(|e| Error::invalid(format!("snapshot {}", folder.display()), e.to_string()))?;
    let wanted = Machine::of(config)?;
    if machine != wanted {
        let why = format!("was saved from another machine: {machine:?}, not {wanted:?}");
        return Err(Error::invalid(format!("snapshot {}", folder.display()), why));
    }
    Ok(Saved { memory: file("memory")?, state: file("state")?.into() })
}

/// The guest's memory: empty, or a copy of a snapshot's.
pub(super) fn memory(size: u64, saved: Option<&Saved>) -> Result<OwnedFd> {
    let fd = memfd_create("guest-memory", MemfdFlags::CLOEXEC)
        .map_err(Error::errno("create the guest's memory"))?;
    let file = File::from(fd);
    file.set_len(size).map_err(Error::os("size the guest's memory"))?;
    if let Some(saved) = saved {
        copy_data(&saved.memory, &file).map_err(Error::os("copy a snapshot's memory"))?;
    }
    Ok(file.into())
}

/// Loads the machine's state and plugs a vsock device.
pub(super) async fn load(vm: &Qemu, saved: Saved) -> Result<()> {
    ignore_shared(vm).await?;
    let set = vm.qmp.add_fd(saved.state).await?;
    vm.qmp.call("migrate-incoming", json!({ "uri": format!("file:{}", set.path()) })).await?;
    finished(vm).await?;
    let port = vm.ports.take()?;
    let (transport, frontend) = Transport::open()?;
    match frontend {
        Frontend::VhostUser(socket) => {
            plug::connected_chardev(vm, VSOCK, socket).await?;
            plug::add(vm, "vhost-user-vsock-pci", VSOCK, &port, [("chardev", VSOCK.into())]).await?;
        }
        Frontend::Vhost { fd, cid } => {
            vm.qmp.get_fd(VSOCK, fd).await?;
            let properties = [("guest-cid", Value::from(cid)), ("vhostfd", VSOCK.into())];
            plug::add(vm, "vhost-vsock-pci", VSOCK, &port, properties).await?;
        }
    }
    *vm.vsock.lock().await = Some(Arc::new(transport));
    *vm.vsock_port.lock().await = Some(port);
    Ok(())
}

/// Saves a VM. On failure the folder holds nothing that [`open`] accepts: `machine.json` is written last.
pub(super) async fn save(vm: &Qemu, folder: &Path) -> Result<()> {
    let plugged = vm.plugged.lock().await;
    if !plugged.is_empty() {
        return Err(Error::invalid(
            "snapshot",
            "devices are plugged in, which only this VM's processes know: unplug them",
        ));
    }
    if vm.vsock.lock().await.take().is_some() {
        plug::remove_device(vm, VSOCK, UNPLUG_LIMIT).await?;
        // Absent with the kernel's vsock.
        let _ = vm.qmp.run(chardev_remove { id: VSOCK.into() }).await;
        *vm.vsock_port.lock().await = None;
    }
    vm.pause().await?;
    ignore_shared(vm).await?;
    let create = |name: &'static str| {
        let path = folder.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::File {
            what: "snapshot file",
            path,
            source: e.into(),
        })
    };
    let set = vm.qmp.add_fd(create("state")?).await?;
    vm.qmp.call("migrate", json!({ "uri": format!("file:{}", set.path()) })).await?;
    finished(vm).await?;
    let memory = vm.memory.try_clone().map_err(Error::os("duplicate the memory's descriptor"))?;
    let target = File::from(create("memory")?);
    let size = vm.config.memory;
    let copied = tokio::task::spawn_blocking(move || {
        target.set_len(size)?;
        copy_data(&File::from(memory), &target)
    });
    copied.await.unwrap_or_else(|e| Err(e.into())).map_err(Error::os("copy the guest's memory"))?;
    let machine = File::from(create("machine.json")?);
    serde_json::to_writer(machine, &Machine::of(&vm.config)?)
        .map_err(|e| Error::Os { what: "write a snapshot's description", source: e.into() })
}

async fn ignore_shared(vm: &Qemu) -> Result<()> {
    let capability = json!({ "capability": "x-ignore-shared", "state": true });
    vm.qmp.call("migrate-set-capabilities", json!({ "capabilities": [capability] })).await.map(drop)
}

/// Waits for the end of a migration, in either direction.
async fn finished(vm: &Qemu) -> Result<()> {
    let done = async {
        loop {
            let info = vm.qmp.run(query_migrate {}).await?;
            match info.status.map(|s| format!("{s:?}")).as_deref() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let reason = info.error_desc.unwrap_or_else(|| "no reason given".into());
                    return Err(Error::Refused { command: "migrate".into(), reason });
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let late = |_| Err(Error::Timeout { what: "saving or loading a VM's state".into(), limit: STATE_LIMIT });
    tokio::time::timeout(STATE_LIMIT, done).await.unwrap_or_else(late)
}

/// Copies what was ever written of a sparse file; holes stay holes.
fn copy_data(mut from: &File, mut to: &File) -> std::io::Result<()> {
    use rustix::fs::SeekFrom as Seeking;

    let size = from.metadata()?.len();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, Seeking::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(from, Seeking::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let mut piece = std::io::Read::take(from, end - start);
        std::io::copy(&mut piece, &mut to)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_sparse_copy_is_equal_and_sparse() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"middle", 33 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        to.set_len(64 << 20).unwrap();
        copy_data(&from, &to).unwrap();
        let mut bytes = [0u8; 6];
        to.read_exact_at(&mut bytes, 33 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
