//! Devices plugged into and out of a running guest.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use qapi::qmp::{blockdev_del, chardev_remove, device_add, device_del, netdev_del, remove_fd};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::Qemu;
use super::ports::{BUS, Port};
use crate::disk::{self, ImageDisk, RawDisk};
use crate::process::Process;
use crate::qmp::{FdSet, QmpEvent};
use crate::share::{self, Share};
use crate::vmm::{DeviceId, Event};
use crate::{Error, Result};

/// What is plugged at the moment.
#[derive(Debug, Default)]
pub(super) struct Plugged {
    pub devices: HashMap<DeviceId, Device>,
    /// Numbers devices; never reused, so that a late event cannot be taken for another device's.
    next: u64,
    /// The slot of the memory growth device.
    pub growth: Option<Port>,
}

impl Plugged {
    /// Whether nothing is plugged.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.growth.is_none()
    }
}

#[derive(Debug)]
pub(super) struct Device {
    /// Given back when the device is gone.
    pub _port: Port,
    pub backend: Backend,
}

/// What is behind a device, to be removed after it.
#[derive(Debug)]
pub(super) enum Backend {
    Disk,
    /// Dropping the process ends the daemon.
    Share {
        daemon: Process,
        watcher: tokio::task::JoinHandle<()>,
    },
    Net,
    /// As of a share.
    Egress {
        daemon: Process,
        watcher: tokio::task::JoinHandle<()>,
    },
}

/// Plugs several flat files as one disk.
pub(super) async fn image(vm: &Qemu, disk: ImageDisk) -> Result<DeviceId> {
    disk.check()?;
    let mut files = Vec::with_capacity(disk.extents.len());
    for extent in &disk.extents {
        files.push(disk::read_only(&extent.file)?);
    }
    let mut sets = Vec::with_capacity(files.len() + 1);
    let added = async {
        for file in files {
            sets.push(vm.qmp.add_fd(file).await?);
        }
        let paths: Vec<String> = sets.iter().map(|set| set.path()).collect();
        let descriptor = vm.qmp.add_fd(memfd(disk::descriptor(&disk.extents, &paths).as_bytes())?).await?;
        sets.push(descriptor);
        // The pieces are opened by the vmdk driver at protocol level, which never looks for a format in them.
        let file = json!({ "driver": "file", "filename": descriptor.path(), "read-only": true });
        block_device(vm, &disk.serial, json!({ "driver": "vmdk", "read-only": true, "file": file })).await
    }
    .await;
    release(vm, &sets).await;
    added
}

/// Plugs a raw disk. Its format is named: what a guest writes is never looked at.
pub(super) async fn raw(vm: &Qemu, disk: RawDisk) -> Result<DeviceId> {
    disk::check_serial(&disk.serial)?;
    let driver = disk::protocol_driver(&disk)?;
    let file = if disk.read_only { disk::read_only(&disk.file)? } else { disk.file };
    let set = vm.qmp.add_fd(file).await?;
    let cache = json!({ "direct": false, "no-flush": disk.ephemeral });
    let file = json!({
        "driver": driver, "filename": set.path(), "read-only": disk.read_only,
        "cache": cache, "discard": "unmap", "aio": "threads",
    });
    let node = json!({
        "driver": "raw", "read-only": disk.read_only, "file": file, "cache": cache, "discard": "unmap",
    });
    let added = block_device(vm, &disk.serial, node).await;
    release(vm, &[set]).await;
    added
}

/// Adds a node and the device on top of it.
async fn block_device(vm: &Qemu, serial: &str, mut node: Value) -> Result<DeviceId> {
    let mut plugged = vm.plugged.lock().await;
    let port = vm.ports.take()?;
    let id = next_id(&mut plugged);
    if let Some(node) = node.as_object_mut() {
        node.insert("node-name".into(), id.0.clone().into());
    }
    vm.qmp.call("blockdev-add", node).await?;
    // QEMU would make a queue for each processor there can ever be.
    let queues = ("num-queues", Value::from(vm.config.cpus));
    // By itself QEMU would stop the guest until somebody makes room on a full host: nobody is told, and no word gets through.
    let [write_errors, read_errors] = ["werror", "rerror"].map(|name| (name, Value::from("report")));
    let properties = [
        ("drive", Value::from(id.0.as_str())),
        ("serial", serial.into()),
        queues,
        modern(),
        write_errors,
        read_errors,
    ];
    if let Err(error) = add(vm, "virtio-blk-pci", &id.0, &port, properties).await {
        // Only tidies up: the device is what the caller has to hear about.
        let _ = vm.qmp.run(blockdev_del { node_name: id.0 }).await;
        return Err(error);
    }
    plugged.devices.insert(id.clone(), Device { _port: port, backend: Backend::Disk });
    Ok(id)
}

/// Starts a share's daemon and plugs its device.
pub(super) async fn share(vm: &Qemu, share: Share) -> Result<DeviceId> {
    let (daemon, socket) = share::start(&vm.host.virtiofsd, &vm.config.run_dir, &share).await?;
    let mut plugged = vm.plugged.lock().await;
    let port = vm.ports.take()?;
    let id = next_id(&mut plugged);
    let added = async {
        connected_chardev(vm, &id.0, socket).await?;
        let properties = [("chardev", Value::from(id.0.as_str())), ("tag", share.tag.as_str().into())];
        let added = add(vm, "vhost-user-fs-pci", &id.0, &port, properties).await;
        if added.is_err() {
            // Only tidies up.
            let _ = vm.qmp.run(chardev_remove { id: id.0.clone() }).await;
        }
        added
    }
    .await;
    if let Err(error) = added {
        // The daemon's own words say more than QEMU's about a connection it did not get.
        let ended = tokio::time::timeout(Duration::from_millis(200), daemon.exited().wait()).await;
        return Err(match ended {
            Ok(reason) => {
                Error::invalid(format!("share {}", share.tag), format!("virtiofsd ended with {reason}"))
            }
            Err(_) => error,
        });
    }
    let watcher = watch(vm, &daemon, "virtiofsd", |reason| Event::ShareFailed { tag: share.tag, reason });
    plugged.devices.insert(id.clone(), Device { _port: port, backend: Backend::Share { daemon, watcher } });
    Ok(id)
}

/// Tells of the end of a daemon that a device can't be without.
pub(super) fn watch(
    vm: &Qemu,
    daemon: &Process,
    what: &'static str,
    event: impl FnOnce(String) -> Event + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let (mut exited, events) = (daemon.exited(), vm.events.clone());
    tokio::spawn(async move {
        let reason = exited.wait().await;
        // Nobody listening is fine.
        let _ = events.send(event(format!("{what} ended with {reason}")));
    })
}

/// Asks the guest to let go of a device, waits until it has, and removes what was behind it.
pub(super) async fn unplug(vm: &Qemu, id: &DeviceId, limit: Duration) -> Result<()> {
    let mut plugged = vm.plugged.lock().await;
    if !plugged.devices.contains_key(id) {
        return Err(Error::invalid(format!("device {id}"), "is not plugged"));
    }
    remove_device(vm, &id.0, limit).await?;
    let Some(device) = plugged.devices.remove(id) else { return Ok(()) };
    match device.backend {
        Backend::Disk => vm.qmp.run(blockdev_del { node_name: id.0.clone() }).await.map(drop),
        Backend::Net => vm.qmp.run(netdev_del { id: id.0.clone() }).await.map(drop),
        Backend::Share { daemon, watcher } => {
            watcher.abort();
            drop(daemon);
            vm.qmp.run(chardev_remove { id: id.0.clone() }).await.map(drop)
        }
        Backend::Egress { daemon, watcher } => {
            watcher.abort();
            drop(daemon);
            vm.qmp.run(netdev_del { id: id.0.clone() }).await.map(drop)
        }
    }
}

/// `device_del`, awaited until the guest has released the device.
pub(super) async fn remove_device(vm: &Qemu, id: &str, limit: Duration) -> Result<()> {
    let mut events = vm.qmp.events();
    let gone = async {
        vm.qmp.run(device_del { id: id.to_owned() }).await?;
        loop {
            match events.recv().await {
                Ok(event) if about(&event, id) && event.name == "DEVICE_DELETED" => return Ok(()),
                Ok(event) if about(&event, id) && event.name == "DEVICE_UNPLUG_GUEST_ERROR" => {
                    return Err(Error::invalid(format!("device {id}"), "the guest refuses to let go of it"));
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(Error::Protocol("QEMU closed the connection".into())),
            }
        }
    };
    let late = |_| Err(Error::Timeout { what: format!("the guest's release of device {id}"), limit });
    tokio::time::timeout(limit, gone).await.unwrap_or_else(late)
}

fn about(event: &QmpEvent, id: &str) -> bool {
    event.text("device") == Some(id)
}

pub(super) fn next_id(plugged: &mut Plugged) -> DeviceId {
    plugged.next += 1;
    DeviceId(format!("dev{}", plugged.next))
}

/// Without the I/O ports of virtio before 1.0, which a conventional bus would otherwise offer.
pub(super) fn modern() -> (&'static str, Value) {
    ("disable-legacy", "on".into())
}

/// `device_add` into a slot.
pub(super) async fn add<const N: usize>(
    vm: &Qemu,
    driver: &str,
    id: &str,
    port: &Port,
    properties: [(&str, Value); N],
) -> Result<()> {
    let mut arguments: Map<String, Value> =
        properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    arguments.insert("addr".into(), port.addr().into());
    vm.qmp.run(device_add::new(driver, id.to_owned(), BUS.to_owned(), arguments)).await.map(drop)
}

/// A character device on a socket that is connected already.
pub(super) async fn connected_chardev(vm: &Qemu, id: &str, socket: OwnedFd) -> Result<()> {
    vm.qmp.get_fd(id, socket).await?;
    let address = json!({ "type": "fd", "data": { "str": id } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    vm.qmp.call("chardev-add", json!({ "id": id, "backend": backend })).await.map(drop)
}

/// Takes QEMU's first copy of descriptors back: the block nodes hold their own.
async fn release(vm: &Qemu, sets: &[FdSet]) {
    for set in sets {
        // A descriptor that stays costs a number in QEMU, nothing else.
        let _ = vm.qmp.run(remove_fd { fd: None, fdset_id: set.id() }).await;
    }
}

fn memfd(content: &[u8]) -> Result<OwnedFd> {
    use std::io::Write;

    let fd = rustix::fs::memfd_create("descriptor", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(Error::errno("create a memfd"))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content).map_err(Error::os("write a memfd"))?;
    disk::read_only(&file.into())
}
