//! The end of the guest.

use rustix::system::{RebootCommand, reboot};

/// Writes everything back and powers the guest off. When the machine cannot do that, restarts it, which a host started
/// with "no reboot" ends too. Returns only if the kernel refuses both.
pub fn power_off() {
    rustix::fs::sync();
    for command in [RebootCommand::PowerOff, RebootCommand::Restart] {
        if let Err(error) = reboot(command) {
            eprintln!("cloister-agent: {command:?}: {error}");
        }
    }
}
