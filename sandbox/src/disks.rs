//! The disks plugged into a sandbox, and who uses them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use cloister_image::Digest;
use cloister_protocol::{limits, v1};
use cloister_vmm::{DeviceId, RawDisk};

use crate::container::{Layer, Root};
use crate::error::Error;
use crate::machine::Machine;
use crate::scratch::Scratch;

/// How long a guest may take to let go of a disk it does not use any more.
const UNPLUG: Duration = Duration::from_secs(10);

/// The disks of a sandbox. Containers with the same layers share one image disk; slots are few.
#[derive(Default)]
pub(crate) struct Disks {
    /// Numbers disks; never reused, so that a serial names one disk only.
    next: u32,
    images: HashMap<Vec<Digest>, Image>,
    containers: HashMap<String, Used>,
    named: HashMap<String, DeviceId>,
}

struct Image {
    serial: String,
    device: DeviceId,
    users: usize,
}

#[derive(Default)]
struct Used {
    image: Option<Vec<Digest>>,
    scratch: Option<DeviceId>,
    /// What the scratch disk's file is called.
    name: Option<PathBuf>,
}

impl Disks {
    /// Plugs what a container's root filesystem needs. When this fails nothing stays plugged for it.
    pub(crate) async fn plug(
        &mut self,
        machine: &Machine,
        container: &str,
        root: Root,
    ) -> Result<v1::Rootfs, Error> {
        let (layers, scratch) = match root {
            Root::Share(path) => return Ok(v1::Rootfs { share_path: path, ..v1::Rootfs::default() }),
            Root::Layers { layers, scratch } => (layers, scratch),
        };
        let mut used = Used::default();
        let plugged = self.plug_root(machine, layers, scratch, &mut used).await;
        match plugged {
            Ok(rootfs) => {
                self.containers.insert(container.to_owned(), used);
                Ok(rootfs)
            }
            Err(error) => {
                self.release(machine, used).await;
                Err(error)
            }
        }
    }

    async fn plug_root(
        &mut self,
        machine: &Machine,
        layers: Vec<Layer>,
        scratch: Option<Scratch>,
        used: &mut Used,
    ) -> Result<v1::Rootfs, Error> {
        let count = u32::try_from(layers.len()).ok().filter(|count| *count <= limits::LAYERS);
        let count = count.ok_or(Error::Layers(layers.len()))?;
        let mut rootfs = v1::Rootfs { layers: count, ..v1::Rootfs::default() };
        if count > 0 {
            let key: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
            rootfs.image_serial = self.plug_image(machine, key.clone(), &layers).await?;
            used.image = Some(key);
        }
        if let Some(scratch) = scratch {
            rootfs.scratch_serial = self.serial("scratch");
            used.name.clone_from(&scratch.name);
            let file = scratch.create().await?;
            used.scratch = Some(machine.plug_disk(ephemeral(&rootfs.scratch_serial, file)).await?);
        }
        Ok(rootfs)
    }

    async fn plug_image(
        &mut self,
        machine: &Machine,
        key: Vec<Digest>,
        layers: &[Layer],
    ) -> Result<String, Error> {
        if let Some(image) = self.images.get_mut(&key) {
            image.users += 1;
            return Ok(image.serial.clone());
        }
        let serial = self.serial("image");
        let device = machine.plug_image(&serial, layers).await?;
        self.images.insert(key, Image { serial: serial.clone(), device, users: 1 });
        Ok(serial)
    }

    /// Plugs a disk that is not a container's root filesystem and returns its serial.
    pub(crate) async fn plug_named(
        &mut self,
        machine: &Machine,
        file: OwnedFd,
        read_only: bool,
        ephemeral: bool,
    ) -> Result<String, Error> {
        let serial = self.serial("disk");
        let disk = RawDisk { serial: serial.clone(), file, read_only, ephemeral };
        let device = machine.plug_disk(disk).await?;
        self.named.insert(serial.clone(), device);
        Ok(serial)
    }

    /// Takes a disk of [`Disks::plug_named`] out.
    pub(crate) async fn unplug_named(&mut self, machine: &Machine, serial: &str) {
        if let Some(device) = self.named.remove(serial) {
            unplug(machine, &device).await;
        }
    }

    /// Takes out what only this container used; the guest must have unmounted it.
    pub(crate) async fn unplug(&mut self, machine: &Machine, container: &str) {
        if let Some(used) = self.containers.remove(container) {
            self.release(machine, used).await;
        }
    }

    async fn release(&mut self, machine: &Machine, used: Used) {
        if let Some(device) = used.scratch {
            unplug(machine, &device).await;
        }
        if let Some(name) = used.name {
            // Whoever removes the folder removes it too.
            let _ = tokio::fs::remove_file(name).await;
        }
        let Some(key) = used.image else { return };
        let Some(image) = self.images.get_mut(&key) else { return };
        image.users -= 1;
        if image.users == 0
            && let Some(image) = self.images.remove(&key)
        {
            unplug(machine, &image.device).await;
        }
    }

    fn serial(&mut self, kind: &str) -> String {
        let number = self.next;
        self.next += 1;
        format!("{kind}{number}")
    }
}

fn ephemeral(serial: &str, file: OwnedFd) -> RawDisk {
    RawDisk { serial: serial.to_owned(), file, read_only: false, ephemeral: true }
}

/// A disk that a guest keeps costs a slot, nothing else, until the machine ends.
async fn unplug(machine: &Machine, device: &DeviceId) {
    if let Err(error) = machine.unplug(device, UNPLUG).await {
        tracing::warn!(%device, %error, "the guest keeps a disk");
    }
}
