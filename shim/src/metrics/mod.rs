//! The pod's figures in Prometheus' text format: on a socket in the pod's folder that `cloister-node` collects, and at the
//! pod's end in a file that it adds to what it knows.
//!
//! No series names a pod: who wants pods apart knows them by the socket. All of them are listed in `docs/metrics.md`.

mod last;
mod machine;
mod server;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use cloister_metrics::Families;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

pub use last::leave;
pub use server::serve;

use self::machine::MachineFigures;
use crate::pod::{Machine, Pod, Stage};

/// Upper bounds of request times, in seconds; a quantile is never above the largest, which alerts have to ask for less than.
const REQUESTS: [f64; 12] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0];
/// Upper bounds of the times of a start's steps, in seconds.
const STEPS: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0];
/// Names of containers that are remembered to know a restart.
const NAMES: usize = 256;

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With exit code 0.
    Completed,
    /// With another exit code, or by a signal.
    Error,
    /// The guest's kernel killed it for its memory.
    OutOfMemory,
    /// The pod was stopped.
    Stopped,
    /// The microVM was lost.
    Lost,
}

impl Ending {
    const ALL: [Self; 5] = [Self::Completed, Self::Error, Self::OutOfMemory, Self::Stopped, Self::Lost];

    fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Error => "error",
            Self::OutOfMemory => "oom",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
        }
    }
}

/// What is counted while it happens.
pub struct Counted {
    families: Families,
    requests: HistogramVec,
    events: IntCounterVec,
    steps: HistogramVec,
    /// Steps that are in `steps`.
    seen: Mutex<BTreeSet<&'static str>>,
    containers: IntGauge,
    created: IntCounter,
    restarts: IntCounter,
    names: Mutex<BTreeSet<String>>,
    exits: IntCounterVec,
    losses: IntCounterVec,
    machine: MachineFigures,
}

impl Counted {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// When two series had one name.
    pub fn new() -> Result<Self> {
        let mut families = Families::new("cloister_pod_");
        let counted = Self {
            requests: families.histograms(
                "request_duration_seconds",
                "Time of containerd's calls",
                &REQUESTS,
                &["call", "result"],
            )?,
            events: families.counters("events_total", "Events sent to containerd", &["event"])?,
            steps: families.histograms(
                "start_step_duration_seconds",
                "Time of each step of a pod's start",
                &STEPS,
                &["step"],
            )?,
            seen: Mutex::default(),
            containers: families.gauge("containers", "Containers that exist, sandboxes not counted")?,
            created: families
                .counter("containers_created_total", "Containers created, sandboxes not counted")?,
            restarts: families.counter(
                "container_restarts_total",
                "Containers created under a name that the pod had a container of before",
            )?,
            names: Mutex::default(),
            exits: families.counters("container_exits_total", "Ends of containers by reason", &["reason"])?,
            losses: families.counters(
                "machine_losses_total",
                "MicroVMs that ended without having been asked, by what they were doing",
                &["phase"],
            )?,
            machine: MachineFigures::new(&mut families)?,
            families,
        };
        // What can be counted is there from the beginning: a counter that appears with its first event has no rate.
        for ending in Ending::ALL {
            counted.exits.with_label_values(&[ending.name()]);
        }
        for phase in ["boot", "running"] {
            counted.losses.with_label_values(&[phase]);
        }
        Ok(counted)
    }

    /// A call of containerd's is done.
    pub fn request(&self, call: &str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        self.requests.with_label_values(&[call, result]).observe(took.as_secs_f64());
    }

    /// Something happened that containerd hears of.
    pub fn event(&self, event: &str) {
        self.events.with_label_values(&[event]).inc();
    }

    /// A container was made; `name` is what its pod calls it.
    pub fn created(&self, name: Option<&str>) {
        self.created.inc();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(name) = name else { return };
        if names.contains(name) {
            self.restarts.inc();
        } else if names.len() < NAMES {
            names.insert(name.to_owned());
        }
    }

    /// A container's own process ended.
    pub fn exited(&self, ending: Ending) {
        self.exits.with_label_values(&[ending.name()]).inc();
    }

    /// The machine ended without having been asked.
    pub fn lost(&self, booting: bool) {
        self.losses.with_label_values(&[if booting { "boot" } else { "running" }]).inc();
    }

    /// Reads what the machine counts; what ends is read once more before it does.
    pub async fn read(&self, machine: &Machine) {
        for timing in machine.sandbox.timings().boot() {
            let step = timing.step.name();
            if self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(step) {
                let took = Duration::from_micros(timing.micros);
                self.steps.with_label_values(&[step]).observe(took.as_secs_f64());
            }
        }
        self.machine.read(machine).await;
    }

    /// Everything as one page.
    async fn page(&self, pod: &Pod) -> Result<Vec<u8>> {
        self.containers.set(i64::try_from(pod.members()).unwrap_or(i64::MAX));
        if let Stage::Running(machine) = pod.stage() {
            self.read(&machine).await;
        }
        self.encode()
    }

    fn encode(&self) -> Result<Vec<u8>> {
        Ok(self.families.page()?.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cloister_metrics::document;

    use super::*;

    #[test]
    fn every_family_is_documented() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        let rows = Counted::new().unwrap().families.rows().to_vec();
        assert_eq!(document::check(path, "pods", &rows), Ok(()));
    }

    #[test]
    fn no_series_names_a_pod() {
        let counted = Counted::new().unwrap();
        counted.request("create", true, Duration::from_millis(3));
        counted.event("/tasks/oom");
        counted.exited(Ending::OutOfMemory);
        let page = String::from_utf8(counted.encode().unwrap()).unwrap();
        for line in [
            "cloister_pod_request_duration_seconds_count{call=\"create\",result=\"ok\"} 1\n",
            "cloister_pod_container_exits_total{reason=\"oom\"} 1\n",
            "cloister_pod_machine_losses_total{phase=\"boot\"} 0\n",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        for label in ["pod=", "namespace=", "container="] {
            assert!(!page.contains(label), "{label}");
        }
    }

    #[test]
    fn a_name_that_comes_again_is_a_restart() {
        let counted = Counted::new().unwrap();
        for name in [Some("web"), Some("log"), Some("web"), None, None, Some("web")] {
            counted.created(name);
        }
        assert_eq!((counted.created.get(), counted.restarts.get()), (6, 2));
    }
}
