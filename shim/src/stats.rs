//! The guest's counters in the notation that containerd passes on to the CRI: cgroup version 2, whatever the host has.

use cloister_protocol::v1::StatsResponse;
use containerd_shim::protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;

use crate::failure::{Failure, Result};

/// The name containerd knows the message by.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// Packs counters.
///
/// # Errors
/// When they can't be encoded.
pub fn pack(stats: &StatsResponse, whole_guest: bool) -> Result<Any> {
    let value = metrics(stats, whole_guest).write_to_bytes().map_err(Failure::other)?;
    Ok(Any { type_url: TYPE.to_owned(), value, ..Any::default() })
}

fn metrics(stats: &StatsResponse, whole_guest: bool) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.cpu = Some(CPUStat {
        usage_usec: stats.cpu_usage_micros,
        user_usec: stats.cpu_user_micros,
        system_usec: stats.cpu_system_micros,
        nr_periods: stats.cpu_periods,
        nr_throttled: stats.cpu_throttled_periods,
        throttled_usec: stats.cpu_throttled_micros,
        ..CPUStat::default()
    })
    .into();
    metrics.memory = Some(memory(stats)).into();
    metrics.memory_events =
        Some(MemoryEvents { oom: stats.oom_kills, oom_kill: stats.oom_kills, ..MemoryEvents::default() })
            .into();
    metrics.pids =
        Some(PidsStat { current: stats.pids, limit: stats.pids_limit, ..PidsStat::default() }).into();
    let usage = stats.disks.iter().map(|disk| IOEntry {
        major: disk.major.into(),
        minor: disk.minor.into(),
        rbytes: disk.read_bytes,
        wbytes: disk.written_bytes,
        rios: disk.reads,
        wios: disk.writes,
        ..IOEntry::default()
    });
    metrics.io = Some(IOStat { usage: usage.collect(), ..IOStat::default() }).into();
    if whole_guest {
        let network = stats.interfaces.iter().map(|interface| NetworkStat {
            name: interface.name.clone(),
            rx_bytes: interface.received_bytes,
            rx_packets: interface.received_packets,
            rx_errors: interface.received_errors,
            rx_dropped: interface.received_dropped,
            tx_bytes: interface.sent_bytes,
            tx_packets: interface.sent_packets,
            tx_errors: interface.sent_errors,
            tx_dropped: interface.sent_dropped,
            ..NetworkStat::default()
        });
        metrics.network = network.collect();
    }
    metrics
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let line = |name: &str| stats.memory_stat.get(name).copied().unwrap_or_default();
    MemoryStat {
        usage: stats.memory_bytes,
        // containerd reads "no limit" as the largest number.
        usage_limit: if stats.memory_limit_bytes == 0 { u64::MAX } else { stats.memory_limit_bytes },
        max_usage: stats.memory_peak_bytes,
        swap_usage: stats.swap_bytes,
        anon: line("anon"),
        file: line("file"),
        kernel_stack: line("kernel_stack"),
        slab: line("slab"),
        sock: line("sock"),
        shmem: line("shmem"),
        file_mapped: line("file_mapped"),
        file_dirty: line("file_dirty"),
        file_writeback: line("file_writeback"),
        anon_thp: line("anon_thp"),
        inactive_anon: line("inactive_anon"),
        active_anon: line("active_anon"),
        // The CRI's working set is the usage less this.
        inactive_file: stats.memory_bytes.saturating_sub(stats.memory_working_set_bytes),
        active_file: line("active_file"),
        unevictable: line("unevictable"),
        slab_reclaimable: line("slab_reclaimable"),
        slab_unreclaimable: line("slab_unreclaimable"),
        pgfault: line("pgfault"),
        pgmajfault: line("pgmajfault"),
        ..MemoryStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_set_is_what_containerd_computes() {
        let stats = StatsResponse {
            memory_bytes: 100,
            memory_working_set_bytes: 70,
            cpu_usage_micros: 5,
            oom_kills: 2,
            ..StatsResponse::default()
        };
        let any = pack(&stats, false).unwrap();
        assert_eq!(any.type_url, TYPE);
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.memory.usage - metrics.memory.inactive_file, 70);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!((metrics.cpu.usage_usec, metrics.memory_events.oom_kill), (5, 2));
    }
}
