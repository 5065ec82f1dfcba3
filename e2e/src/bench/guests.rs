//! How much of a pod's start its microVM had, from the page that `cloister-node` serves.

use anyhow::Result;

use crate::node;
use crate::rig::Rig;

/// What the steps of a start are called in which the host waits for its guest: kernel and agent come up; the agent sets
/// up name and network; it stacks the root filesystem and makes the process; it lets it run.
const STEPS: [&str; 4] = ["agent", "network", "rootfs", "process"];

/// Sums over all pods that the lab ever had.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guests {
    /// Wall-clock seconds that starts waited for guests.
    pub seconds: f64,
    /// Seconds of processor time of the monitors, virtual processors included.
    pub processor: f64,
}

impl Guests {
    /// The sums now.
    pub fn read(rig: &Rig) -> Result<Self> {
        let page = node::page(rig.lab.root())?;
        // What has not happened yet is not on the page.
        let value = |series: &str| node::value(&page, series).unwrap_or(0.0);
        let step = |name| value(&format!("cloister_pod_start_step_duration_seconds_sum{{step=\"{name}\"}}"));
        Ok(Self {
            seconds: STEPS.into_iter().map(step).sum(),
            processor: value("cloister_pod_vmm_cpu_seconds_total"),
        })
    }

    /// What came since.
    pub fn since(self, before: &Self) -> Self {
        Self { seconds: self.seconds - before.seconds, processor: self.processor - before.processor }
    }
}
