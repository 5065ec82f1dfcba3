//! What this machine holds that a microVM could leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Processes, mounts, unix sockets, network interfaces and the files below one folder, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    facts: BTreeSet<String>,
}

impl Leftovers {
    /// Looks now. Of the processes only those that name `root` on their command line, or that are helpers of a
    /// microVM below it, count: other tests run beside this one.
    pub fn below(root: &Path) -> Result<Leftovers> {
        let mut facts = BTreeSet::new();
        let root_text = root.to_string_lossy();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let marks = [cmdline, environ].concat();
            if String::from_utf8_lossy(&marks).contains(&*root_text) && pid != std::process::id() {
                let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                facts.insert(format!("process {} ({pid})", comm.trim()));
            }
        }
        for (kind, file) in [("mount", "/proc/self/mounts"), ("socket", "/proc/net/unix")] {
            for line in fs::read_to_string(file)?.lines().filter(|l| l.contains(&*root_text)) {
                facts.insert(format!("{kind} {line}"));
            }
        }
        for entry in fs::read_dir("/sys/class/net")? {
            facts.insert(format!("network interface {}", entry?.file_name().to_string_lossy()));
        }
        walk(root, &mut facts)?;
        Ok(Leftovers { facts })
    }

    /// What is there now and was not there before, waiting up to `patience` for it to go.
    pub fn new_since(&self, root: &Path, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let new: Vec<String> = Leftovers::below(root)?.facts.difference(&self.facts).cloned().collect();
            if new.is_empty() || Instant::now() >= deadline {
                return Ok(new);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn walk(folder: &Path, facts: &mut BTreeSet<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        facts.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, facts)?;
        }
    }
    Ok(())
}
