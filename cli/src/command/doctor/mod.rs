//! `cloister doctor`: what this machine offers, and the command that mends what is missing.

mod containerd;
mod cri;
mod machine;
mod node;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::args::{DoctorArgs, Format, Global};
use crate::output;
use crate::paths::Root;

/// How long a program may take to say its version.
const VERSION_TIME: Duration = Duration::from_secs(5);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works without it, or worse.
    Warning,
    /// `run`, or with `--cri` a pod, can't work.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), fix: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Missing, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Checks everything; returns 1 when something that is needed is missing.
pub async fn run(global: &Global, args: &DoctorArgs) -> Result<u8> {
    let mut checks = machine::checks(&Root::find(global)?, args.cri).await;
    if args.cri {
        let (found, runtime) = cri::checks(&args.containerd).await;
        checks.extend(found);
        let layers = runtime.is_none_or(|runtime| runtime.uses_layers());
        checks.extend(node::checks(&args.node, layers, &args.pods));
    }
    if global.output == Format::Json {
        output::json(&checks)?;
    } else {
        output::print(&checks.iter().map(line).collect::<String>())?;
    }
    Ok(u8::from(checks.iter().any(|check| check.verdict == Verdict::Missing)))
}

fn line(check: &Check) -> String {
    let mark = match check.verdict {
        Verdict::Ok => "ok      ",
        Verdict::Warning => "warning ",
        Verdict::Missing => "MISSING ",
    };
    let fix = check.fix.as_ref().map(|fix| format!("\n{:22}fix: {fix}", "")).unwrap_or_default();
    format!("{mark}{:14}{}{fix}\n", check.name, check.detail)
}

/// The first line a program prints for the option that asks for its version, or `None` when it prints none in time.
fn first_line(program: &Path, option: &str) -> Option<String> {
    let mut child = Command::new(program)
        .arg(option)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if begun.elapsed() > VERSION_TIME {
            // It is over either way.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// Major and minor of the first `N.N` in a line.
fn version_in(line: &str) -> Option<(u64, u64)> {
    line.split_ascii_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(version_in("QEMU emulator version 7.2.19"), Some((7, 2)));
        assert_eq!(version_in("v2.1.9+unknown"), Some((2, 1)));
        assert_eq!(version_in("hello"), None);
    }
}
