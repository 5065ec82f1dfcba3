//! How much memory and how many processors the machine has, by what its containers may use.

use oci_spec::runtime::LinuxResources;

use super::{Machine, Pod};
use crate::failure::Result;
use crate::spec::{self, Limits};

impl Pod {
    /// What the pod's containers may use together: the pod's own limit, or the sum of theirs and the default for those
    /// without one.
    fn together(&self, machine: &Machine) -> Limits {
        let own: Vec<Limits> =
            self.containers().values().filter(|c| !c.is_sandbox()).map(|c| c.limits()).collect();
        sum(&own, machine.setup.limits, self.config.default_memory())
    }

    /// Gives the machine what its containers need. It never shrinks here: a container that is made again would only
    /// wait for what was taken away.
    ///
    /// # Errors
    /// When the guest does not take it up.
    pub(super) async fn make_room(&self, machine: &Machine) -> Result<()> {
        let together = self.together(machine);
        let mut size = machine.size.lock().await;
        let memory = self.config.memory(together.memory).min(self.config.max_memory()).max(size.0);
        let cpus = self.config.cpus(together.cpu).max(size.1);
        if (memory, cpus) != *size {
            tracing::info!(memory_mib = memory >> 20, cpus, "the machine grows");
            machine.sandbox.resize(memory, cpus).await?;
            *size = (memory, cpus);
        }
        Ok(())
    }

    /// Changes what a container may use: the machine grows before, and shrinks after, as far as the guest lets go.
    ///
    /// # Errors
    /// When the guest refuses.
    pub async fn update_container(&self, id: &str, resources: LinuxResources) -> Result<()> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Ok(());
        }
        let machine = self.present()?;
        let before = container.limits();
        let asked = spec::limits(Some(&resources));
        container
            .set_limits(Limits { memory: asked.memory.or(before.memory), cpu: asked.cpu.or(before.cpu) });
        self.make_room(&machine).await?;
        let limits = spec::guest_limits(resources);
        machine.sandbox.while_alive(machine.sandbox.agent().update_container(id, &limits)).await?;
        self.give_back(&machine).await;
        Ok(())
    }

    async fn give_back(&self, machine: &Machine) {
        let together = self.together(machine);
        let mut size = machine.size.lock().await;
        let memory = self.config.memory(together.memory).max(self.config.memory(machine.setup.limits.memory));
        if memory < size.0 {
            match machine.sandbox.shrink(memory).await {
                Ok(()) => size.0 = memory,
                Err(error) => tracing::info!(%error, "the machine keeps its memory"),
            }
        }
    }
}

/// Adds limits up. Containers without one share what the pod was given, or the default.
fn sum(containers: &[Limits], pod: Limits, default_memory: u64) -> Limits {
    let memory: u64 = containers.iter().filter_map(|limits| limits.memory).sum();
    let open = containers.iter().any(|limits| limits.memory.is_none());
    let memory = match pod.memory {
        // The CRI says what all containers may use together.
        Some(pod) => pod.max(memory),
        None if open => memory + default_memory,
        None => memory,
    };
    let cpus: Option<u64> = containers.iter().map(|limits| limits.cpu).sum();
    Limits { memory: (memory > 0).then_some(memory), cpu: cpus.filter(|cpus| *cpus > 0).max(pod.cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(memory: Option<u64>, cpu: Option<u64>) -> Limits {
        Limits { memory: memory.map(|mib| mib * MIB), cpu }
    }

    #[test]
    fn limits_add_up_and_the_default_stands_in() {
        let two = [limits(Some(100), Some(500)), limits(Some(50), Some(700))];
        assert_eq!(sum(&two, Limits::default(), 512 * MIB), limits(Some(150), Some(1200)));
        let open = [limits(Some(100), Some(500)), limits(None, None)];
        assert_eq!(sum(&open, Limits::default(), 512 * MIB), limits(Some(612), None));
        assert_eq!(sum(&[limits(None, None); 3], Limits::default(), 512 * MIB), limits(Some(512), None));
        assert_eq!(sum(&[], Limits::default(), 512 * MIB), Limits::default());
    }

    #[test]
    fn a_pods_own_limit_is_the_least() {
        let pod = limits(Some(200), Some(2000));
        assert_eq!(sum(&[limits(Some(100), None)], pod, 512 * MIB), limits(Some(200), Some(2000)));
        assert_eq!(sum(&[limits(None, None)], pod, 512 * MIB), limits(Some(200), Some(2000)));
        assert_eq!(sum(&[limits(Some(300), None)], pod, 512 * MIB), limits(Some(300), Some(2000)));
    }
}
