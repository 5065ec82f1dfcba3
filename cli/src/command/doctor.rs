//! `cloister doctor`: what this machine offers, and the command that mends what is missing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use cloister_vmm::accel::{self, Chosen};
use serde::Serialize;

use crate::args::{Format, Global};
use crate::paths::Root;
use crate::{host, kernel, output};

/// Free space below which images hardly fit, in bytes.
const SPACE: u64 = 1 << 30;
/// Open files one machine with a few shares may need.
const FILES: u64 = 1024;
/// How long a program may take to say its version.
const VERSION_TIME: Duration = Duration::from_secs(5);
const LEAST_QEMU: (u64, u64) = (10, 0);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works without it, or worse.
    Warning,
    /// `run` can't work.
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

    fn bad(name: &'static str, verdict: Verdict, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Checks everything; returns 1 when something `run` needs is missing.
pub fn run(global: &Global) -> Result<u8> {
    let root = Root::find(global)?;
    let checks = [
        qemu(),
        firmware(),
        virtiofsd(),
        guest(&root),
        acceleration(),
        namespaces(),
        vsock(),
        tun(),
        folder(&root),
        files(),
    ];
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

fn qemu() -> Check {
    const NAME: &str = "qemu";
    const FIX: &str = "apt-get install -t bookworm-backports qemu-system-x86 (Debian 12), or qemu-system-x86 of a newer release";
    let Some(path) = host::qemu() else {
        return Check::bad(NAME, Verdict::Missing, "not installed", FIX);
    };
    let Some(version) = version_of(&path) else {
        return Check::bad(
            NAME,
            Verdict::Missing,
            format!("{} does not say its version", path.display()),
            FIX,
        );
    };
    let detail = format!("{} ({version})", path.display());
    match parse_version(&version) {
        Some(found) if found >= LEAST_QEMU => Check::ok(NAME, detail),
        _ => Check::bad(
            NAME,
            Verdict::Missing,
            format!("{detail}; {}.{} is needed", LEAST_QEMU.0, LEAST_QEMU.1),
            FIX,
        ),
    }
}

fn firmware() -> Check {
    match host::firmware() {
        Some(path) => Check::ok("firmware", path.display().to_string()),
        None => Check::bad(
            "firmware",
            Verdict::Missing,
            "qboot.rom not found",
            "apt-get install qemu-system-data",
        ),
    }
}

fn virtiofsd() -> Check {
    const NAME: &str = "virtiofsd";
    match host::virtiofsd() {
        Some(path) => {
            let version = version_of(&path).unwrap_or_else(|| "version unknown".to_owned());
            Check::ok(NAME, format!("{} ({version})", path.display()))
        }
        None => Check::bad(
            NAME,
            Verdict::Warning,
            "not installed: -v does not work",
            "cargo install --locked virtiofsd, or apt-get install virtiofsd (Debian 13)",
        ),
    }
}

fn guest(root: &Root) -> Check {
    const NAME: &str = "guest kernel";
    match kernel::choose(root, std::env::var_os("CLOISTER_KERNEL").as_deref().map(Path::new)) {
        Ok(found) => Check::ok(NAME, found.vmlinux.display().to_string()),
        Err(error) => Check::bad(NAME, Verdict::Missing, format!("{error:#}"), "make build"),
    }
}

fn acceleration() -> Check {
    const NAME: &str = "acceleration";
    match accel::choose(cloister_vmm::Accel::Auto) {
        Ok(Chosen::Kvm(_)) => Check::ok(NAME, "kvm"),
        Ok(Chosen::Tcg { warning }) => Check::bad(
            NAME,
            Verdict::Warning,
            format!("emulation: {}", warning.unwrap_or_default()),
            "use a machine with virtualisation, or turn nested virtualisation on; as a user: adduser $USER kvm",
        ),
        Err(error) => Check::bad(NAME, Verdict::Warning, error.to_string(), "check /dev/kvm"),
    }
}

/// virtiofsd of an ordinary user needs a user namespace for its own sandbox.
fn namespaces() -> Check {
    const NAME: &str = "namespaces";
    if rustix::process::geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Check::bad(
            NAME,
            Verdict::Warning,
            "user namespaces are off: -v does not work",
            "sysctl user.max_user_namespaces=10000",
        );
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Check::bad(
            NAME,
            Verdict::Warning,
            "user namespaces are for root only: -v does not work",
            "sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Check::bad(
            NAME,
            Verdict::Warning,
            "AppArmor restricts user namespaces: -v may not work",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    Check::ok(NAME, "user namespaces are on")
}

fn vsock() -> Check {
    let device = Path::new("/dev/vhost-vsock");
    let detail = if device.exists() {
        "the kernel's vhost-vsock"
    } else {
        "own vhost-user device (the kernel offers none)"
    };
    Check::ok("vsock", detail)
}

fn tun() -> Check {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::ok("network", "/dev/net/tun opens"),
        Err(error) => Check::bad(
            "network",
            Verdict::Warning,
            format!("/dev/net/tun: {error}; not used by `run` yet"),
            "modprobe tun",
        ),
    }
}

fn folder(root: &Root) -> Check {
    const NAME: &str = "root folder";
    let path = root.path();
    // The nearest part of the path that exists decides.
    let Some(there) = path.ancestors().find(|part| part.exists()) else {
        return Check::bad(
            NAME,
            Verdict::Missing,
            format!("{} can't be used", path.display()),
            "choose another with --root",
        );
    };
    if rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        return Check::bad(
            NAME,
            Verdict::Missing,
            format!("{} is not writable", there.display()),
            "choose another with --root",
        );
    }
    let Ok(space) = rustix::fs::statvfs(there) else {
        return Check::bad(
            NAME,
            Verdict::Missing,
            format!("{} can't be used", there.display()),
            "choose another with --root",
        );
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let detail = format!("{} ({} free)", path.display(), output::bytes(free));
    if free < SPACE {
        return Check::bad(NAME, Verdict::Warning, detail, "cloister image prune --all");
    }
    if space.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
        tracing::debug!(
            "the root folder is on a filesystem without execution, which is fine: nothing runs from it"
        );
    }
    Check::ok(NAME, detail)
}

fn files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(most) if most < FILES => Check::bad(
            "open files",
            Verdict::Warning,
            format!("at most {most}"),
            format!("ulimit -n {FILES}"),
        ),
        Some(most) => Check::ok("open files", format!("at most {most}")),
        None => Check::ok("open files", "no limit"),
    }
}

/// The first line a program prints for `--version`, or `None` when it prints none in time.
fn version_of(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .ok()?;
    let begun = std::time::Instant::now();
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
fn parse_version(line: &str) -> Option<(u64, u64)> {
    line.split_ascii_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.19"), Some((7, 2)));
        assert_eq!(parse_version("hello"), None);
    }
}
