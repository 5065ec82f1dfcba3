//! Network interfaces plugged into a running guest.

use std::os::fd::OwnedFd;

use qapi::qmp::netdev_del;
use serde_json::{Value, json};

use super::plug::{Backend, Device, add, modern, next_id, watch};
use super::ports::Port;
use super::{Qemu, identity};
use crate::Result;
use crate::egress::{self, Egress};
use crate::vmm::{DeviceId, Event, Tap};

/// Plugs a network interface.
pub(super) async fn tap(vm: &Qemu, tap: Tap) -> Result<DeviceId> {
    let mut plugged = vm.plugged.lock().await;
    let port = vm.ports.take()?;
    let id = next_id(&mut plugged);
    let netdev = json!({ "type": "tap", "id": id.0, "fd": id.0 });
    network_device(vm, &id, &port, (tap.fd, netdev), tap.mac).await?;
    plugged.devices.insert(id.clone(), Device { _port: port, backend: Backend::Net });
    Ok(id)
}

/// Starts the daemon of a way out and plugs its interface.
pub(super) async fn egress(vm: &Qemu, egress: Egress) -> Result<DeviceId> {
    let (daemon, socket) = egress::start(&vm.host, identity(&vm.host)?, &egress).await?;
    let mut plugged = vm.plugged.lock().await;
    let port = vm.ports.take()?;
    let id = next_id(&mut plugged);
    // Of the two that speak this protocol, `stream` looks its descriptor up where the monitor's are not known.
    let netdev = json!({ "type": "socket", "id": id.0, "fd": id.0 });
    network_device(vm, &id, &port, (socket, netdev), Egress::MAC).await?;
    let watcher = watch(vm, &daemon, "passt", |reason| Event::EgressFailed { reason });
    plugged.devices.insert(id.clone(), Device { _port: port, backend: Backend::Egress { daemon, watcher } });
    Ok(id)
}

/// Adds what carries frames, over a descriptor that has the device's name, and the device on top of it.
async fn network_device(
    vm: &Qemu,
    id: &DeviceId,
    port: &Port,
    (fd, netdev): (OwnedFd, Value),
    mac: [u8; 6],
) -> Result<()> {
    vm.qmp.get_fd(&id.0, fd).await?;
    vm.qmp.call("netdev_add", netdev).await?;
    let [a, b, c, d, e, f] = mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    // Without a ROM: nothing boots from the network.
    let properties =
        [("netdev", Value::from(id.0.as_str())), ("mac", mac.into()), ("romfile", "".into()), modern()];
    let added = add(vm, "virtio-net-pci", &id.0, port, properties).await;
    if added.is_err() {
        // Only tidies up.
        let _ = vm.qmp.run(netdev_del { id: id.0.clone() }).await;
    }
    added
}
