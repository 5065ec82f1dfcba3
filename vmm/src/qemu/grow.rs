//! Memory and processors added to a running guest.

use std::sync::atomic::Ordering;

use qapi::qmp::qom_set;
use serde_json::{Value, json};

use super::{Qemu, plug};
use crate::config::MEMORY_STEP;
use crate::{Error, Result};

/// Id of the one virtio-mem device.
const DEVICE: &str = "growth";
/// Id of its memory.
const BACKEND: &str = "growth-memory";

/// Offers the guest `total` bytes through virtio-mem, which is plugged at the first growth.
pub(super) async fn memory(vm: &Qemu, total: u64) -> Result<()> {
    let (least, most) = (vm.config.memory, vm.config.max_memory);
    if !total.is_multiple_of(MEMORY_STEP) || !(least..=most).contains(&total) {
        return Err(Error::invalid(
            "memory",
            format!("{total} bytes is not a multiple of 2 MiB in {least}..={most}"),
        ));
    }
    let extra = total - least;
    let mut plugged = vm.plugged.lock().await;
    if plugged.growth.is_some() {
        let path = format!("/machine/peripheral/{DEVICE}");
        let set = qom_set { path, property: "requested-size".into(), value: extra.into() };
        return vm.qmp.run(set).await.map(drop);
    }
    if extra == 0 {
        return Ok(());
    }
    let port = vm.ports.take()?;
    let backend = json!({
        "qom-type": "memory-backend-memfd", "id": BACKEND, "size": most - least,
        "share": true, "reserve": false, "merge": false, "dump": false,
    });
    vm.qmp.call("object-add", backend).await?;
    let properties = [("memdev", Value::from(BACKEND)), ("requested-size", extra.into())];
    if let Err(error) = plug::add(vm, "virtio-mem-pci", DEVICE, &port, properties).await {
        // Only tidies up: the device is what the caller has to hear about.
        let _ = vm.qmp.call("object-del", json!({ "id": BACKEND })).await;
        return Err(error);
    }
    plugged.growth = Some(port);
    Ok(())
}

/// Raises the number of processors the guest may bring online.
pub(super) fn cpus(vm: &Qemu, total: u32) -> Result<()> {
    if total > vm.config.max_cpus {
        return Err(Error::invalid(
            "cpus",
            format!("{total} is more than the maximum of {}", vm.config.max_cpus),
        ));
    }
    // They are all there: see `args`. What is left is to count them.
    vm.cpus.fetch_max(total, Ordering::Relaxed);
    Ok(())
}
