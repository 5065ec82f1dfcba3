//! What programs say of themselves: subcommands and flags.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use cloister_e2e::lab::{cache, checkout, target_dir};

/// A program of ours, or one whose words documents use.
pub fn command(program: &str) -> Command {
    match program {
        "kubectl" => Command::new(cache().unwrap().join("tools/kubectl/usr/bin/kubectl")),
        "helm" => Command::new(checkout().join("scripts/charts/helm.py")),
        "kubectl cloister" => {
            let mut command = Command::new(target_dir().join("cloister"));
            command.arg0("kubectl-cloister");
            command
        }
        ours => Command::new(target_dir().join(ours)),
    }
}

/// What `PROGRAM SUB… --help` prints.
pub fn help(program: &str, subcommands: &[&str]) -> String {
    static KNOWN: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
    let key = format!("{program} {}", subcommands.join(" "));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known
        .entry(key)
        .or_insert_with(|| {
            let mut command = command(program);
            let output =
                command.args(subcommands).arg("--help").env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
            assert!(output.status.success(), "{program} {subcommands:?} has no help");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .clone()
}

/// Whether a help text lists a subcommand.
pub fn has_subcommand(help: &str, name: &str) -> bool {
    let mut listed = false;
    help.lines().any(|line| {
        // "Commands:", and kubectl's "Basic Commands (Beginner):".
        if !line.starts_with(' ') {
            listed = line.contains("Commands");
        }
        listed && line.split_whitespace().next() == Some(name)
    })
}

/// Whether a help text has a flag, and whether the flag takes a value.
pub fn flag(help: &str, flag: &str) -> Option<bool> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    help.lines().find_map(|line| {
        let words = line.trim_start();
        if !words.starts_with(['-', '[']) && !line.starts_with("usage:") {
            return None;
        }
        let at = line.match_indices(flag).map(|(at, _)| at).find(|&at| {
            let (before, after) = (&line[..at], &line[at + flag.len()..]);
            !before.ends_with(is_part) && !after.starts_with(is_part)
        })?;
        // clap: "-v, --volume <X>"; kubectl: "-n, --namespace='':"; argparse: "-n NAMESPACE".
        let rest = &line[at..];
        let definition = rest.split("  ").next().unwrap_or_default();
        let value = definition.contains(['<', '['])
            || definition.contains("=") && !definition.contains("=false:") && !definition.contains("=true:");
        Some(value)
    })
}
