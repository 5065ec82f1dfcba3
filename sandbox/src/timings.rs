//! How long each step of a start took.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The steps of a start, in the order they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The VMM process runs and takes commands.
    Vmm,
    /// The guest's kernel is up and its agent answered; devices were plugged meanwhile.
    Agent,
    /// The guest has its name and its network.
    Network,
    /// Disks and shares are plugged and shares mounted.
    Devices,
    /// The root filesystem is stacked and the process is prepared.
    Rootfs,
    /// The process runs.
    Process,
}

impl Step {
    /// Its name, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Agent => "agent",
            Self::Network => "network",
            Self::Devices => "devices",
            Self::Rootfs => "rootfs",
            Self::Process => "process",
        }
    }

    /// What has been reached, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Vmm => "virtual machine monitor up",
            Self::Agent => "kernel booted, agent answered",
            Self::Network => "name and network set up",
            Self::Devices => "disks and shares plugged",
            Self::Rootfs => "root filesystem stacked",
            Self::Process => "process started",
        }
    }
}

/// Steps that are kept: a machine may start containers for years.
const STEPS: usize = 64;

/// One step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// What was done.
    pub step: Step,
    /// Microseconds it took, counted from the end of the step before.
    pub micros: u64,
}

/// Measures the steps of one start.
#[derive(Debug, Clone)]
pub struct Timings {
    last: Instant,
    steps: Vec<Timing>,
}

impl Timings {
    /// Begins now.
    pub fn start() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// Ends a step.
    pub fn reached(&mut self, step: Step) {
        let now = Instant::now();
        let took = now.duration_since(self.last);
        self.last = now;
        tracing::debug!(step = step.describe(), took_ms = took.as_millis(), "start");
        if self.steps.len() >= STEPS {
            return;
        }
        self.steps.push(Timing { step, micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) });
    }

    /// The steps that are done.
    pub fn steps(&self) -> &[Timing] {
        &self.steps
    }

    /// The first time of each step: those of the machine and its first container.
    pub fn boot(&self) -> Vec<Timing> {
        let mut first: Vec<Timing> = Vec::new();
        for timing in &self.steps {
            if !first.iter().any(|known| known.step == timing.step) {
                first.push(*timing);
            }
        }
        first
    }

    /// Time of all steps together.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(|step| Duration::from_micros(step.micros)).sum()
    }
}
