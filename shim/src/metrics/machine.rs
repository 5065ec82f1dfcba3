//! What the host counts about a machine: its monitor, its disks, its connections and its network.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cloister_metrics::Families;
use cloister_network::Counters;
use cloister_vmm::Metrics;
use prometheus::{Counter, Gauge};

use crate::pod::Machine;

/// How long a monitor may take to answer.
const READ: Duration = Duration::from_secs(1);

/// Gauges of a machine, and counters that never fall when a part of it goes.
pub struct MachineFigures {
    memory: Gauge,
    cpus: Gauge,
    resident: Gauge,
    proportional: Gauge,
    disks: Gauge,
    streams: Gauge,
    opened: Growth,
    cpu: Growth,
    disk: [Growth; 4],
    network: [Growth; 8],
}

/// The disks' counters: bytes and operations, each read and written.
const DISK: [(&str, &str); 4] = [
    ("disk_read_bytes_total", "Bytes read from the microVM's disks"),
    ("disk_written_bytes_total", "Bytes written to the microVM's disks"),
    ("disk_reads_total", "Read operations of the microVM's disks"),
    ("disk_writes_total", "Write operations of the microVM's disks"),
];

/// The interfaces' counters, in the order in which [`MachineFigures::network`] reads them.
const NETWORK: [(&str, &str); 8] = [
    ("network_receive_bytes_total", "Bytes that pods received"),
    ("network_receive_packets_total", "Packets that pods received"),
    ("network_receive_errors_total", "Packets for pods that arrived with an error"),
    ("network_receive_drops_total", "Packets for pods that were dropped"),
    ("network_transmit_bytes_total", "Bytes that pods sent"),
    ("network_transmit_packets_total", "Packets that pods sent"),
    ("network_transmit_errors_total", "Packets of pods that could not be sent"),
    ("network_transmit_drops_total", "Packets of pods that were dropped"),
];

impl MachineFigures {
    /// All zero.
    pub fn new(families: &mut Families) -> cloister_metrics::Result<Self> {
        let mut growth = |(name, help): (&str, &str), unit: f64| {
            Ok::<_, prometheus::Error>(Growth {
                counter: families.counter(name, help)?,
                unit,
                last: Mutex::default(),
            })
        };
        let [read, written, reads, writes] = DISK.map(|named| growth(named, 1.0));
        let [rx, rx_p, rx_e, rx_d, tx, tx_p, tx_e, tx_d] = NETWORK.map(|named| growth(named, 1.0));
        let opened = growth(("vsock_streams_opened_total", "Connections into guests opened"), 1.0)?;
        let cpu = growth(
            ("vmm_cpu_seconds_total", "Processor time of the monitors, virtual processors included"),
            0.001,
        )?;
        Ok(Self {
            memory: families.gauge("vm_memory_bytes", "Memory of microVMs")?,
            cpus: families.gauge("vm_cpus", "Virtual processors of microVMs")?,
            resident: families
                .gauge("vmm_resident_memory_bytes", "Resident memory of the monitors' processes")?,
            proportional: families.gauge(
                "vmm_proportional_memory_bytes",
                "Memory of the monitors' processes, pages that are shared divided among their users",
            )?,
            disks: families.gauge("disks", "Disks plugged into microVMs")?,
            streams: families.gauge(
                "vsock_streams",
                "Connections into guests that are open, where the host's kernel does not carry them",
            )?,
            opened,
            cpu,
            disk: [read?, written?, reads?, writes?],
            network: [rx?, rx_p?, rx_e?, rx_d?, tx?, tx_p?, tx_e?, tx_d?],
        })
    }

    /// Reads a machine; what does not answer in time stays as it was.
    pub async fn read(&self, machine: &Machine) {
        if let Ok(Ok(metrics)) = tokio::time::timeout(READ, machine.sandbox.metrics()).await {
            self.machine(&metrics);
        }
        if let Some((netns, interfaces)) = &machine.network {
            let counters = cloister_network::counters(netns, interfaces);
            if let Ok(Ok(counters)) = tokio::time::timeout(READ, counters).await {
                self.network(&counters);
            }
        }
    }

    fn machine(&self, metrics: &Metrics) {
        self.memory.set(number(metrics.memory));
        self.cpus.set(f64::from(metrics.cpus));
        self.resident.set(number(metrics.rss));
        self.proportional.set(number(metrics.pss));
        self.disks.set(number(metrics.disks.len() as u64));
        self.streams.set(number(metrics.streams.open.unwrap_or_default()));
        self.opened.read([("", metrics.streams.opened)]);
        self.cpu.read([("", metrics.cpu_ms)]);
        let [read, written, reads, writes] = &self.disk;
        let disks = || metrics.disks.iter();
        read.read(disks().map(|disk| (disk.device.as_str(), disk.read_bytes)));
        written.read(disks().map(|disk| (disk.device.as_str(), disk.written_bytes)));
        reads.read(disks().map(|disk| (disk.device.as_str(), disk.reads)));
        writes.read(disks().map(|disk| (disk.device.as_str(), disk.writes)));
    }

    fn network(&self, counters: &[Counters]) {
        const READINGS: [fn(&Counters) -> u64; 8] = [
            |c| c.rx_bytes,
            |c| c.rx_packets,
            |c| c.rx_errors,
            |c| c.rx_dropped,
            |c| c.tx_bytes,
            |c| c.tx_packets,
            |c| c.tx_errors,
            |c| c.tx_dropped,
        ];
        for (growth, reading) in self.network.iter().zip(READINGS) {
            growth.read(counters.iter().map(|interface| (interface.name.as_str(), reading(interface))));
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has floating point numbers only")]
fn number(value: u64) -> f64 {
    value as f64
}

/// A counter fed by readings of parts that come and go, each of which only grows while it is there.
struct Growth {
    counter: Counter,
    /// What 1 of a reading is in the counter's unit.
    unit: f64,
    /// The last reading of each part.
    last: Mutex<BTreeMap<String, u64>>,
}

impl Growth {
    /// Adds what has grown since the last readings.
    fn read<'p>(&self, parts: impl IntoIterator<Item = (&'p str, u64)>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeMap::new();
        for (part, value) in parts {
            let before = last.get(part).copied().unwrap_or_default();
            // A smaller one is that of another part of the same name.
            let grown = value.checked_sub(before).unwrap_or(value);
            self.counter.inc_by(number(grown) * self.unit);
            now.insert(part.to_owned(), value);
        }
        *last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_never_falls_when_a_disk_goes() {
        let growth = Growth { counter: Counter::new("x", "x").unwrap(), unit: 0.5, last: Mutex::default() };
        growth.read([("a", 10), ("b", 4)]);
        growth.read([("b", 6)]);
        growth.read([("a", 2), ("b", 6)]);
        assert!((growth.counter.get() - 9.0).abs() < 1e-9, "{}", growth.counter.get());
    }

    #[test]
    fn what_the_host_counts_is_on_the_page() {
        let mut families = Families::new("cloister_pod_");
        let figures = MachineFigures::new(&mut families).unwrap();
        figures.machine(&Metrics { memory: 1 << 30, cpus: 2, cpu_ms: 1500, ..Metrics::default() });
        figures.network(&[Counters {
            name: "eth0".into(),
            rx_bytes: 7,
            tx_dropped: 1,
            ..Counters::default()
        }]);
        let page = families.page().unwrap();
        for line in [
            "cloister_pod_vm_memory_bytes 1073741824\n",
            "cloister_pod_vmm_cpu_seconds_total 1.5\n",
            "cloister_pod_network_receive_bytes_total 7\n",
            "cloister_pod_network_transmit_drops_total 1\n",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}
