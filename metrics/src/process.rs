//! What Prometheus' own libraries tell of a process, under the same names.

use std::fmt::Write;
use std::fs;

use crate::document::Row;

/// Ticks of a second in the kernel's files: 100 on every architecture that a node may have.
const TICKS: f64 = 100.0;
/// Names, types and meanings, in the order of [`read`].
const FAMILIES: [(&str, &str, &str); 5] = [
    ("process_cpu_seconds_total", "counter", "Processor time of this process"),
    ("process_max_fds", "gauge", "File descriptors that it may have open"),
    ("process_open_fds", "gauge", "File descriptors that it has open"),
    ("process_resident_memory_bytes", "gauge", "Resident memory of this process"),
    ("process_start_time_seconds", "gauge", "When it was started, since 1970"),
];

/// What a document says of them.
pub fn rows() -> Vec<Row> {
    let row = |(name, kind, help): &(&str, &str, &str)| Row {
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        labels: Vec::new(),
        help: (*help).to_owned(),
    };
    FAMILIES.iter().map(row).collect()
}

/// This process's part of a page; what cannot be read is left out.
pub fn page() -> String {
    let mut page = String::new();
    for ((name, kind, help), value) in FAMILIES.iter().zip(read()) {
        if let Some(value) = value {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    page
}

/// proc(5): the fields of `stat` are counted from its third, which follows the name.
fn read() -> [Option<f64>; 5] {
    let text = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let (stat, status, limits) = (text("stat"), text("status"), text("limits"));
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let cpu = || Some((field(14)? + field(15)?) / TICKS);
    // The folder itself is open while it is read.
    let open = || Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64);
    let start = || Some(booted()? + field(22)? / TICKS);
    let memory = number(&status, "VmRSS:").map(|kib| kib * 1024.0);
    [cpu(), number(&limits, "Max open files"), open(), memory, start()]
}

/// When the machine was started, in seconds since 1970.
fn booted() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_process_tells_its_size_and_age() {
        let [cpu, most, open, memory, start] = read().map(Option::unwrap);
        assert!((0.0..3600.0).contains(&cpu), "{cpu}");
        assert!(open >= 3.0 && open < most, "{open} of {most}");
        assert!(memory > 1e6, "{memory}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 3600.0..now + 2.0).contains(&start), "{start} of {now}");
        assert_eq!(page().lines().count(), 3 * FAMILIES.len(), "{}", page());
    }

    #[test]
    fn every_family_is_documented() {
        let document = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"));
        assert_eq!(crate::document::check(document, "each process", &rows()), Ok(()));
    }
}
