//! Finding the programs of the host that a virtual machine needs.

use std::env;
use std::path::{Path, PathBuf};

/// First of the user ids that VMMs run as when their owner is root; the owner's process id is added, which no other
/// live owner has. The range ends below 0x7040_0000 and systemd keeps it free of other uses (systemd,
/// `docs/UIDS-GIDS.md`).
const FIRST_UID: u32 = 0x7000_0000;

/// The firmware beside QEMU's other data, in the places distributions put it.
const FIRMWARE: [&str; 3] =
    ["/usr/share/qemu/qboot.rom", "/usr/share/qemu-kvm/qboot.rom", "/usr/local/share/qemu/qboot.rom"];

/// Places of virtiofsd outside PATH.
const VIRTIOFSD: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/local/libexec/virtiofsd",
];

/// What belongs to the installation that this program is part of: `FOLDER/bin/PROGRAM` has it at `FOLDER/path`. So several
/// versions can be on one node.
pub fn beside(path: &str) -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let found = program.parent()?.parent()?.join(path);
    found.exists().then_some(found)
}

/// QEMU's system emulator for this machine's architecture.
pub fn qemu() -> Option<PathBuf> {
    let name = if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
    from_variable("CLOISTER_QEMU").or_else(|| beside(&format!("bin/{name}"))).or_else(|| in_path(name))
}

/// The firmware that only starts a kernel.
pub fn firmware() -> Option<PathBuf> {
    from_variable("CLOISTER_FIRMWARE")
        .or_else(|| beside("share/qemu/qboot.rom"))
        .or_else(|| FIRMWARE.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// The daemon that shares folders.
pub fn virtiofsd() -> Option<PathBuf> {
    from_variable("CLOISTER_VIRTIOFSD")
        .or_else(|| beside("libexec/virtiofsd"))
        .or_else(|| in_path("virtiofsd"))
        .or_else(|| VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// The daemon that speaks for a guest without a network of its own.
pub fn passt() -> Option<PathBuf> {
    from_variable("CLOISTER_PASST").or_else(|| beside("bin/passt")).or_else(|| in_path("passt"))
}

/// Who runs the VMM of this process when it is root.
pub fn user() -> Option<cloister_vmm::User> {
    let id = FIRST_UID | (std::process::id() & 0x3f_ffff);
    rustix::process::geteuid().is_root().then_some(cloister_vmm::User { uid: id, gid: id })
}

fn from_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn in_path(name: &str) -> Option<PathBuf> {
    // A daemon's PATH often lacks the administrator's folders.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
