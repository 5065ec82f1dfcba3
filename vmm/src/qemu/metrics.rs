//! Counters of one QEMU.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use qapi::qmp::{query_blockstats, query_memory_size_summary};

use super::Qemu;
use crate::Result;
use crate::vmm::{DiskMetrics, Metrics};

pub(super) async fn read(vm: &Qemu) -> Result<Metrics> {
    let memory = vm.qmp.run(query_memory_size_summary {}).await?;
    let blocks = vm.qmp.run(query_blockstats { query_nodes: None }).await?;
    let mut disks: Vec<DiskMetrics> = blocks
        .into_iter()
        .filter_map(|block| {
            // "/machine/peripheral/dev3/virtio-backend"
            let device = block.qdev?.split('/').nth(3)?.to_owned();
            let count = |n: i64| u64::try_from(n).unwrap_or(0);
            Some(DiskMetrics {
                device,
                read_bytes: count(block.stats.rd_bytes),
                written_bytes: count(block.stats.wr_bytes),
                reads: count(block.stats.rd_operations),
                writes: count(block.stats.wr_operations),
            })
        })
        .collect();
    disks.sort_by(|a, b| a.device.cmp(&b.device));
    let proc_dir = PathBuf::from(format!("/proc/{}", vm.process.id()));
    let streams = vm.vsock.lock().await.as_ref().map(|transport| transport.metrics()).unwrap_or_default();
    // The process may end at any time: then the figures are zero and the next command says why.
    let rollup = std::fs::read_to_string(proc_dir.join("smaps_rollup")).unwrap_or_default();
    let stat = std::fs::read_to_string(proc_dir.join("stat")).unwrap_or_default();
    Ok(Metrics {
        memory: memory.base_memory + memory.plugged_memory.unwrap_or(0),
        cpus: vm.cpus.load(Ordering::Relaxed),
        rss: kilobytes(&rollup, "Rss:"),
        pss: kilobytes(&rollup, "Pss:"),
        cpu_ms: cpu_ms(&stat),
        disks,
        streams,
    })
}

/// A line of `smaps_rollup`, in bytes (proc_pid_smaps(5)).
fn kilobytes(rollup: &str, name: &str) -> u64 {
    let value = rollup.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|v| v.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// User and system time of `/proc/<pid>/stat`, in milliseconds (proc_pid_stat(5): fields 14 and 15, in ticks).
fn cpu_ms(stat: &str) -> u64 {
    // The second field is the program's name, which may hold blanks and parentheses.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(kilobytes("Rss:    100 kB\nPss:      7 kB\nPss_Dirty:  9 kB\n", "Pss:"), 7168);
        assert_eq!(kilobytes("", "Pss:"), 0);
        let stat = "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0 20 0 5 0";
        assert_eq!(cpu_ms(stat), 300 * 1000 / rustix::param::clock_ticks_per_second());
        assert_eq!(cpu_ms(""), 0);
    }
}
