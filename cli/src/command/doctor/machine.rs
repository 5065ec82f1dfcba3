//! What every microVM needs: programs, a kernel, devices, space.

use std::fs;
use std::path::Path;

use cloister_vmm::accel::{self, Chosen};
use cloister_vmm::egress;

use super::{Check, first_line, version_in};
use crate::paths::Root;
use crate::{host, kernel, output};

/// Free space below which images hardly fit, in bytes.
const SPACE: u64 = 1 << 30;
/// Open files one machine with a few shares may need.
const FILES: u64 = 1024;
const LEAST_QEMU: (u64, u64) = (10, 0);

/// Everything; `pods` when the network is needed as well.
pub async fn checks(root: &Root, pods: bool) -> Vec<Check> {
    vec![
        qemu(),
        firmware(),
        virtiofsd(),
        passt().await,
        guest(root),
        acceleration(),
        namespaces(),
        vsock(),
        tun(pods),
        folder(root),
        files(),
    ]
}

fn qemu() -> Check {
    const NAME: &str = "qemu";
    const FIX: &str = "apt-get install -t bookworm-backports qemu-system-x86 (Debian 12), or qemu-system-x86 of a newer release";
    let Some(path) = host::qemu() else {
        return Check::missing(NAME, "not installed", FIX);
    };
    let Some(version) = first_line(&path, "--version") else {
        return Check::missing(NAME, format!("{} does not say its version", path.display()), FIX);
    };
    let detail = format!("{} ({version})", path.display());
    match version_in(&version) {
        Some(found) if found >= LEAST_QEMU => Check::ok(NAME, detail),
        _ => Check::missing(NAME, format!("{detail}; {}.{} is needed", LEAST_QEMU.0, LEAST_QEMU.1), FIX),
    }
}

fn firmware() -> Check {
    match host::firmware() {
        Some(path) => Check::ok("firmware", path.display().to_string()),
        None => Check::missing("firmware", "qboot.rom not found", "apt-get install qemu-system-data"),
    }
}

fn virtiofsd() -> Check {
    const NAME: &str = "virtiofsd";
    match host::virtiofsd() {
        Some(path) => {
            let version = first_line(&path, "--version").unwrap_or_else(|| "version unknown".to_owned());
            Check::ok(NAME, format!("{} ({version})", path.display()))
        }
        None => Check::warning(
            NAME,
            "not installed: -v does not work",
            "cargo install --locked virtiofsd, or apt-get install virtiofsd (Debian 13)",
        ),
    }
}

async fn passt() -> Check {
    const NAME: &str = "passt";
    const FIX: &str = "apt-get install passt (Debian 13 or newer)";
    let without = "build --network egress does not work";
    let Some(path) = host::passt() else {
        return Check::warning(NAME, format!("not installed: {without}"), FIX);
    };
    match egress::check(&path).await {
        Ok(()) => Check::ok(NAME, path.display().to_string()),
        Err(error) => Check::warning(NAME, format!("{error}: {without}"), FIX),
    }
}

fn guest(root: &Root) -> Check {
    const NAME: &str = "guest kernel";
    match kernel::choose(root, std::env::var_os("CLOISTER_KERNEL").as_deref().map(Path::new)) {
        Ok(found) => Check::ok(NAME, found.vmlinux.display().to_string()),
        Err(error) => Check::missing(NAME, format!("{error:#}"), "make build"),
    }
}

fn acceleration() -> Check {
    const NAME: &str = "acceleration";
    match accel::choose(cloister_vmm::Accel::Auto) {
        Ok(Chosen::Kvm(_)) => Check::ok(NAME, "kvm"),
        Ok(Chosen::Tcg { warning }) => Check::warning(
            NAME,
            format!("emulation: {}", warning.unwrap_or_default()),
            "use a machine with virtualisation, or turn nested virtualisation on; as a user: adduser $USER kvm",
        ),
        Err(error) => Check::warning(NAME, error.to_string(), "check /dev/kvm"),
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
        return Check::warning(
            NAME,
            "user namespaces are off: -v does not work",
            "sysctl user.max_user_namespaces=10000",
        );
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Check::warning(
            NAME,
            "user namespaces are for root only: -v does not work",
            "sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Check::warning(
            NAME,
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

fn tun(pods: bool) -> Check {
    const NAME: &str = "network";
    const FIX: &str = "modprobe tun";
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::ok(NAME, "/dev/net/tun opens"),
        Err(error) if pods => Check::missing(NAME, format!("/dev/net/tun: {error}"), FIX),
        Err(error) => Check::warning(NAME, format!("/dev/net/tun: {error}; not used by `run` yet"), FIX),
    }
}

fn folder(root: &Root) -> Check {
    const NAME: &str = "root folder";
    let path = root.path();
    // The nearest part of the path that exists decides.
    let Some(there) = path.ancestors().find(|part| part.exists()) else {
        return Check::missing(
            NAME,
            format!("{} can't be used", path.display()),
            "choose another with --root",
        );
    };
    if rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        return Check::missing(
            NAME,
            format!("{} is not writable", there.display()),
            "choose another with --root",
        );
    }
    let Ok(space) = rustix::fs::statvfs(there) else {
        return Check::missing(
            NAME,
            format!("{} can't be used", there.display()),
            "choose another with --root",
        );
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let detail = format!("{} ({} free)", path.display(), output::bytes(free));
    if free < SPACE {
        return Check::warning(NAME, detail, "cloister image prune --all");
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
        Some(most) if most < FILES => {
            Check::warning("open files", format!("at most {most}"), format!("ulimit -n {FILES}"))
        }
        Some(most) => Check::ok("open files", format!("at most {most}")),
        None => Check::ok("open files", "no limit"),
    }
}
