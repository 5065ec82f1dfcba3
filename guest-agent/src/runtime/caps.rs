//! The capability sets of a process that joins a container.
//!
//! Nothing is read from /proc for this: inside a container's mount namespace, /proc is the container's.

use std::collections::HashSet;

use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capability, LinuxCapabilities};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Context, Result};

/// Capabilities a kernel may have; more than the newest has (41 in Linux 6.12).
const HIGHEST: u32 = 63;

/// The sets of a spec as masks; what is not given is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    permitted: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    /// Reads a spec.
    pub fn of(spec: Option<&LinuxCapabilities>) -> Self {
        let set =
            |list: Option<&HashSet<Capability>>| list.into_iter().flatten().fold(CapabilitySet::empty(), add);
        Self {
            bounding: set(spec.and_then(|s| s.bounding().as_ref())),
            permitted: set(spec.and_then(|s| s.permitted().as_ref())),
            effective: set(spec.and_then(|s| s.effective().as_ref())),
            inheritable: set(spec.and_then(|s| s.inheritable().as_ref())),
            ambient: set(spec.and_then(|s| s.ambient().as_ref())),
        }
    }

    /// Cuts the bounding set; to be done while the process still has CAP_SETPCAP.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bound(&self) -> Result<()> {
        for number in 0..=HIGHEST {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL) => break, // the kernel has no more
                Err(e) => return Err(e).context(|| format!("drop capability {number}")),
            }
        }
        Ok(())
    }

    /// Sets the others; to be done after the user id was changed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).context(|| "set the capabilities".into())?;
        clear_ambient_capability_set().context(|| "clear the ambient capabilities".into())?;
        // The kernel takes only what is permitted and inheritable; others are passed over, as other runtimes do.
        for capability in (self.ambient & self.permitted & self.inheritable).iter() {
            configure_capability_in_ambient_set(capability, true)
                .context(|| format!("raise ambient capability {capability:?}"))?;
        }
        Ok(())
    }
}

fn add(set: CapabilitySet, capability: &Capability) -> CapabilitySet {
    set | CapabilitySet::from_bits_retain(capability.to_cap().bitmask())
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::LinuxCapabilitiesBuilder;

    #[test]
    fn what_is_not_given_is_empty() {
        let none = Sets::of(None);
        assert!(none.bounding.is_empty() && none.effective.is_empty() && none.permitted.is_empty());
    }

    #[test]
    fn names_become_the_kernels_numbers() {
        let list: HashSet<_> =
            [Capability::Chown, Capability::NetBindService, Capability::CheckpointRestore].into();
        let spec = LinuxCapabilitiesBuilder::default().bounding(list).build().unwrap();
        let expected =
            CapabilitySet::CHOWN | CapabilitySet::NET_BIND_SERVICE | CapabilitySet::CHECKPOINT_RESTORE;
        assert_eq!(Sets::of(Some(&spec)).bounding, expected);
    }
}
