//! Limits of a running container, from the `linux.resources` of an OCI runtime spec.

use std::fs;

use libcontainer::oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::Cgroup;
use crate::error::{Context, Error, Result};

/// Microseconds of the period that a CPU quota is counted in, when a request gives none (the kernel's default).
const PERIOD: u64 = 100_000;

/// A file of the cgroup, and what goes into it.
type Setting = (String, String);

impl Cgroup {
    /// Changes what `resources`, as JSON, names; the rest stays as it is.
    ///
    /// # Errors
    /// When it is no such object, or the kernel refuses a value: those before it stay set.
    pub fn update(&self, resources: &[u8]) -> Result<()> {
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|e| Error::invalid(format!("the container's resources: {e}")))?;
        let present = fs::read_to_string(self.path.join("cpu.max")).unwrap_or_default();
        for (file, value) in settings(&resources, &present)? {
            let path = self.path.join(&file);
            fs::write(&path, &value).context(|| format!("set {file} to {value}"))?;
        }
        // A guest may lack swap and a size of huge pages: no limit is needed then.
        for (file, value) in optional(&resources) {
            let path = self.path.join(&file);
            if path.exists() {
                fs::write(&path, &value).context(|| format!("set {file} to {value}"))?;
            }
        }
        Ok(())
    }
}

/// What must be possible. `cpu_max` is the file's present content.
fn settings(resources: &LinuxResources, cpu_max: &str) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, cpu_max, &mut settings);
    }
    if let Some(memory) = resources.memory() {
        let mut add = |file: &str, value: Option<i64>| {
            settings.extend(bytes(value).map(|value| (file.to_owned(), value)));
        };
        add("memory.max", memory.limit());
        add("memory.low", memory.reservation());
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        settings.push(("pids.max".to_owned(), if limit < 0 { "max".to_owned() } else { limit.to_string() }));
    }
    for (file, value) in resources.unified().iter().flatten() {
        let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_');
        // The core files of a cgroup say where its processes are: the agent's business.
        if !file.bytes().all(byte)
            || !file.contains('.')
            || file.starts_with(['.', '_'])
            || file.starts_with("cgroup.")
        {
            return Err(Error::invalid(format!("{file:?} is no limit of a cgroup")));
        }
        settings.push((file.clone(), value.clone()));
    }
    Ok(settings)
}

fn cpu_settings(cpu: &LinuxCpu, present: &str, settings: &mut Vec<Setting>) {
    let mut add = |file: &str, value: String| settings.push((file.to_owned(), value));
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        add("cpu.weight", weight(shares).to_string());
    }
    if cpu.quota().is_some() || cpu.period().is_some() {
        let mut words = present.split_ascii_whitespace();
        let (had, every) = (words.next().unwrap_or("max"), words.next());
        let quota = match cpu.quota() {
            None | Some(0) => had.to_owned(),
            Some(quota @ 1..) => quota.to_string(),
            Some(_) => "max".to_owned(),
        };
        let every = every.and_then(|period| period.parse().ok()).unwrap_or(PERIOD);
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(every);
        add("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst() {
        add("cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle() {
        add("cpu.idle", idle.to_string());
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            add(file, list.clone());
        }
    }
}

/// What a guest may lack.
fn optional(resources: &LinuxResources) -> Vec<Setting> {
    let swap = resources.memory().as_ref().and_then(swap).map(|value| ("memory.swap.max".to_owned(), value));
    let pages = resources.hugepage_limits().iter().flatten().flat_map(|limit: &LinuxHugepageLimit| {
        let file = |part: &str| format!("hugetlb.{}.{part}", limit.page_size());
        let plain = limit.page_size().bytes().all(|b| b.is_ascii_alphanumeric());
        [file("max"), file("rsvd.max")]
            .into_iter()
            .filter(move |_| plain)
            .map(|file| (file, limit.limit().to_string()))
    });
    swap.into_iter().chain(pages).collect()
}

/// A spec counts memory and swap together; cgroup v2 counts swap alone.
fn swap(memory: &LinuxMemory) -> Option<String> {
    let (limit, both) = (memory.limit().unwrap_or(0), memory.swap()?);
    match both {
        0 => None,
        both if both < 0 || limit < 0 => Some("max".to_owned()),
        both => Some((both - limit).max(0).to_string()),
    }
}

/// 0 says nothing, less than 0 takes a limit away.
fn bytes(value: Option<i64>) -> Option<String> {
    match value? {
        0 => None,
        value if value < 0 => Some("max".to_owned()),
        value => Some(value.to_string()),
    }
}

/// From 2..=262144 to 1..=10000 on the curve that runc and libcontainer use, so that the default of 1024 is 100.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str, cpu_max: &str) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let mut all = settings(&resources, cpu_max).unwrap();
        all.extend(optional(&resources));
        all
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_kubelet_sends_becomes_cgroup_v2() {
        let json = r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"","mems":""},
            "memory":{"limit":134217728,"swap":134217728},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.oom.group":"1"}}"#;
        let expected = pairs(&[
            ("cpu.weight", "59"),
            ("cpu.max", "50000 100000"),
            ("memory.max", "134217728"),
            ("memory.oom.group", "1"),
            ("memory.swap.max", "0"),
            ("hugetlb.2MB.max", "0"),
            ("hugetlb.2MB.rsvd.max", "0"),
        ]);
        assert_eq!(of(json, "max 100000"), expected);
    }

    #[test]
    fn what_is_not_named_stays_and_minus_one_lifts() {
        assert!(of("{}", "max 100000").is_empty());
        assert_eq!(of(r#"{"cpu":{"period":50000}}"#, "20000 100000"), pairs(&[("cpu.max", "20000 50000")]));
        assert_eq!(of(r#"{"cpu":{"quota":-1}}"#, "20000 50000"), pairs(&[("cpu.max", "max 50000")]));
        assert_eq!(
            of(r#"{"memory":{"limit":-1,"reservation":0},"pids":{"limit":-1}}"#, ""),
            pairs(&[("memory.max", "max"), ("pids.max", "max")])
        );
    }

    #[test]
    fn a_limit_names_no_other_file() {
        for file in ["../x.y", "cgroup.procs", "cgroup.kill", "memory/max", "x", ".x"] {
            let json = format!(r#"{{"unified":{{"{file}":"1"}}}}"#);
            let resources: LinuxResources = serde_json::from_str(&json).unwrap();
            assert!(settings(&resources, "").is_err(), "{file}");
        }
    }

    #[test]
    fn the_default_share_is_the_default_weight() {
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 100, 10_000]);
    }
}
