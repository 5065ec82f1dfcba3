//! The pod's figures in Prometheus' text format, on a socket in the pod's folder that `cloister-node` collects.
//!
//! No series names a pod: who wants pods apart knows them by the socket.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_vmm::Metrics;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::pod::{Pod, Stage};

/// How long a client may take for its request, and for taking the answer.
const CLIENT: Duration = Duration::from_secs(2);
/// Most bytes of a request.
const REQUEST: usize = 4096;
/// Upper bounds of request times, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// What is counted while it happens.
pub struct Counted {
    registry: Registry,
    requests: HistogramVec,
    events: IntCounterVec,
    boot: GaugeVec,
    machine: GaugeVec,
    disks: GaugeVec,
    containers: Gauge,
}

impl Counted {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// When two series had one name.
    pub fn new() -> Result<Self> {
        let named = |name: &str, help: &str| Opts::new(format!("cloister_pod_{name}"), help);
        let requests = HistogramOpts::new("cloister_pod_request_seconds", "Time of containerd's calls");
        let counted = Self {
            registry: Registry::new(),
            requests: HistogramVec::new(requests.buckets(BUCKETS.to_vec()), &["call", "result"])?,
            events: IntCounterVec::new(named("events_total", "What happened in pods"), &["event"])?,
            boot: GaugeVec::new(named("boot_seconds", "Time of each step of a pod's start"), &["step"])?,
            machine: GaugeVec::new(named("machine", "The microVM as its host sees it"), &["figure"])?,
            disks: GaugeVec::new(named("disk", "Work of the microVM's disks"), &["figure"])?,
            containers: Gauge::with_opts(named("containers", "Containers that exist"))?,
        };
        counted.registry.register(Box::new(counted.requests.clone()))?;
        counted.registry.register(Box::new(counted.events.clone()))?;
        counted.registry.register(Box::new(counted.boot.clone()))?;
        counted.registry.register(Box::new(counted.machine.clone()))?;
        counted.registry.register(Box::new(counted.disks.clone()))?;
        counted.registry.register(Box::new(counted.containers.clone()))?;
        Ok(counted)
    }

    /// A call of containerd's is done.
    pub fn request(&self, call: &str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        self.requests.with_label_values(&[call, result]).observe(took.as_secs_f64());
    }

    /// Something happened.
    pub fn event(&self, event: &str) {
        self.events.with_label_values(&[event]).inc();
    }

    fn machine(&self, metrics: &Metrics) {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a floating point number")]
        let number = |value: u64| value as f64;
        for (figure, value) in [
            ("memory_bytes", number(metrics.memory)),
            ("monitor_resident_bytes", number(metrics.rss)),
            ("monitor_proportional_bytes", number(metrics.pss)),
            ("processors", f64::from(metrics.cpus)),
            ("cpu_seconds", number(metrics.cpu_ms) / 1000.0),
        ] {
            self.machine.with_label_values(&[figure]).set(value);
        }
        let sum = |of: fn(&cloister_vmm::DiskMetrics) -> u64| number(metrics.disks.iter().map(of).sum());
        for (figure, value) in [
            ("read_bytes", sum(|disk| disk.read_bytes)),
            ("written_bytes", sum(|disk| disk.written_bytes)),
            ("reads", sum(|disk| disk.reads)),
            ("writes", sum(|disk| disk.writes)),
            ("plugged", number(metrics.disks.len() as u64)),
        ] {
            self.disks.with_label_values(&[figure]).set(value);
        }
    }

    /// Everything as one page.
    async fn page(&self, pod: &Pod) -> Result<Vec<u8>> {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a floating point number")]
        self.containers.set(pod.count() as f64);
        if let Stage::Running(machine) = pod.stage() {
            for step in machine.sandbox.timings().boot() {
                let seconds = Duration::from_micros(step.micros).as_secs_f64();
                self.boot.with_label_values(&[step.step.describe()]).set(seconds);
            }
            if let Ok(metrics) = machine.sandbox.metrics().await {
                self.machine(&metrics);
            }
        }
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

/// Answers on `metrics.sock` in `folder` until the process ends.
///
/// # Errors
/// When the socket can't be made.
pub fn serve(folder: &Path, pod: Arc<Pod>, counted: Arc<Counted>) -> Result<()> {
    let path = folder.join("metrics.sock");
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    // One after the other: there is one collector, and it is bounded in time.
                    let answered = tokio::time::timeout(CLIENT, answer(client, &pod, &counted)).await;
                    tracing::trace!(?answered, "metrics collected");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a collector's connection");
                    tokio::time::sleep(CLIENT).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut client: UnixStream, pod: &Pod, counted: &Counted) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST {
        if client.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let page = counted.page(pod).await?;
    client.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n").await?;
    client.write_all(&page).await?;
    client.shutdown().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_series_names_a_pod() {
        let counted = Counted::new().unwrap();
        counted.request("create", true, Duration::from_millis(3));
        counted.event("/tasks/oom");
        counted.machine(&Metrics { memory: 1 << 30, cpus: 2, ..Metrics::default() });
        let mut page = Vec::new();
        TextEncoder::new().encode(&counted.registry.gather(), &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains("cloister_pod_request_seconds_bucket{call=\"create\",result=\"ok\""), "{page}");
        assert!(page.contains("cloister_pod_machine{figure=\"memory_bytes\"} 1073741824"), "{page}");
        for label in ["pod=", "namespace=", "container="] {
            assert!(!page.contains(label), "{label}");
        }
    }
}
