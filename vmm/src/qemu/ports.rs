//! Hot-plug slots, handed out one per device.
//!
//! All are on ONE conventional PCI bus behind a bridge: the guest enumerates one bridge at boot instead of a root port
//! for each slot, and ACPI plugs into it as well.

use std::sync::{Arc, Mutex};

use crate::{Error, Result};

/// QEMU's id of the bus.
pub(crate) const BUS: &str = "slots";
/// Most slots: a PCI bus has 32, the first one belongs to the bridge.
pub const MAX_PORTS: usize = 31;

/// The slots of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Ports(Arc<Mutex<Vec<bool>>>);

/// A slot in use; dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Port {
    number: usize,
    ports: Ports,
}

impl Ports {
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![false; count])))
    }

    /// The lowest free slot.
    pub fn take(&self) -> Result<Port> {
        let mut used = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = used.iter().position(|&u| !u).ok_or(Error::NoPort(used.len()))?;
        if let Some(slot) = used.get_mut(number) {
            *slot = true;
        }
        Ok(Port { number, ports: self.clone() })
    }
}

impl Port {
    /// The slot's number on the bus, as QEMU's `addr` property.
    pub fn addr(&self) -> String {
        format!("{:#x}", self.number + 1)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut used = self.ports.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(slot) = used.get_mut(self.number) {
            *slot = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_running_out_is_an_error() {
        let ports = Ports::new(2);
        let a = ports.take().unwrap();
        let b = ports.take().unwrap();
        assert_eq!((a.addr(), b.addr()), ("0x1".into(), "0x2".into()));
        assert_eq!(ports.take().unwrap_err().to_string(), "no free hot-plug port: all 2 carry a device");
        drop(a);
        assert_eq!(ports.take().unwrap().addr(), "0x1");
    }
}
