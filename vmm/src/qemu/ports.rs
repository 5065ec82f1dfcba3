//! Hot-plug slots, made when the machine is made and handed out one per device.

use std::sync::{Arc, Mutex};

use crate::{Error, Result};

/// Most slots: what fits beside the machine's own devices on the first PCI bus, eight functions per device.
pub const MAX_PORTS: usize = 128;

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
    /// QEMU's id of the bus behind the slot.
    pub fn bus(&self) -> String {
        format!("port{}", self.number)
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
        assert_eq!((a.bus(), b.bus()), ("port0".into(), "port1".into()));
        assert_eq!(ports.take().unwrap_err().to_string(), "no free hot-plug port: all 2 carry a device");
        drop(a);
        assert_eq!(ports.take().unwrap().bus(), "port0");
    }
}
