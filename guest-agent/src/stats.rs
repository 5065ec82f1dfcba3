//! Counters of a container, or of the whole guest. What is missing in this guest counts as 0.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cloister_protocol::{limits, v1};

use crate::cgroup::Cgroup;
use crate::containers::Container;

/// The counters of one container, or without one of the whole guest.
pub fn of(container: Option<&Container>) -> v1::StatsResponse {
    let cgroup = container.map_or_else(Cgroup::root, |container| container.cgroup.clone());
    let (cpu, memory) = (pairs(&cgroup.read("cpu.stat")), pairs(&cgroup.read("memory.stat")));
    let cpu = |key: &str| cpu.get(key).copied().unwrap_or(0);
    // The root cgroup has no limits, and does not count what everybody uses.
    let used = if container.is_some() { cgroup.number("memory.current") } else { used_memory() };
    let pids = if container.is_some() { cgroup.clone() } else { Cgroup::containers() };
    let (scratch_used_bytes, scratch_used_inodes) =
        container.map_or((0, 0), |container| container.rootfs.usage());
    v1::StatsResponse {
        cpu_usage_micros: cpu("usage_usec"),
        cpu_user_micros: cpu("user_usec"),
        cpu_system_micros: cpu("system_usec"),
        cpu_periods: cpu("nr_periods"),
        cpu_throttled_periods: cpu("nr_throttled"),
        cpu_throttled_micros: cpu("throttled_usec"),
        memory_bytes: used,
        memory_peak_bytes: cgroup.number("memory.peak"),
        memory_limit_bytes: cgroup.number("memory.max"),
        memory_working_set_bytes: used.saturating_sub(memory.get("inactive_file").copied().unwrap_or(0)),
        memory_stat: memory,
        swap_bytes: cgroup.number("memory.swap.current"),
        oom_kills: if container.is_some() { cgroup.oom_kills() } else { Cgroup::containers().oom_kills() },
        pids: pids.number("pids.current"),
        pids_limit: pids.number("pids.max"),
        disks: disks(&cgroup.read("io.stat")),
        interfaces: interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default(), |name| {
            Path::new("/sys/class/net").join(name).join("device").exists()
        }),
        scratch_used_bytes,
        scratch_used_inodes,
    }
}

/// Lines of `key number`.
fn pairs(content: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    content.lines().filter_map(pair).take(limits::MEMORY_STATS).collect()
}

/// Lines of `MAJOR:MINOR key=number …`.
fn disks(content: &str) -> Vec<v1::DiskStats> {
    let disk = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut disk = v1::DiskStats {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..v1::DiskStats::default()
        };
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
        Some(disk)
    };
    content.lines().filter_map(disk).take(limits::DISKS).collect()
}

/// `/proc/net/dev`, without the loopback and whatever else the guest made itself.
fn interfaces(content: &str, plugged: impl Fn(&str) -> bool) -> Vec<v1::InterfaceStats> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let n: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        // Eight columns of what came, eight of what went.
        let [rb, rp, re, rd, _, _, _, _, sb, sp, se, sd, ..] = n[..] else { return None };
        Some(v1::InterfaceStats {
            name: name.trim().to_owned(),
            received_bytes: rb,
            received_packets: rp,
            received_errors: re,
            received_dropped: rd,
            sent_bytes: sb,
            sent_packets: sp,
            sent_errors: se,
            sent_dropped: sd,
        })
    };
    let all = content.lines().filter_map(interface).filter(|interface| plugged(&interface.name));
    all.take(limits::INTERFACES).collect()
}

/// The whole guest's memory in use.
fn used_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    kib("MemTotal:").saturating_sub(kib("MemFree:")) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = disks("254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:16 \n");
        assert_eq!((stat.len(), stat[0].read_bytes, stat[0].reads, stat[1].minor), (2, 4096, 1, 16));
        let dev = "Inter-|   Receive    |  Transmit\n face |bytes packets errs drop\n\
                   lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n  eth0: 10 1 2 3 0 0 0 0 20 4 5 6 0 0 0 0\n";
        let seen = interfaces(dev, |name| name == "eth0");
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].name.as_str(), seen[0].received_bytes, seen[0].sent_dropped), ("eth0", 10, 6));
        assert_eq!(pairs("anon 5\nfile 7\nbroken\n").len(), 2);
    }
}
