//! What a spec leaves out or asks too much of.

use cloister_protocol::paths;
use libcontainer::oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxResources};

use crate::error::{Error, Kind, Result};

/// Adds the paths that a spec hides from no one, and refuses one that allows every device.
pub(super) fn restrict(linux: &mut Linux) -> Result<()> {
    let strings = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect());
    if linux.masked_paths().as_ref().is_none_or(Vec::is_empty) {
        linux.set_masked_paths(strings(&paths::MASKED));
    }
    if linux.readonly_paths().as_ref().is_none_or(Vec::is_empty) {
        linux.set_readonly_paths(strings(&paths::READ_ONLY));
    }
    let rules =
        linux.resources().as_ref().and_then(|resources: &LinuxResources| resources.devices().as_deref());
    let every = |rule: &LinuxDeviceCgroup| {
        rule.allow()
            && rule.major().is_none_or(|n| n < 0)
            && rule.minor().is_none_or(|n| n < 0)
            && rule.access().as_deref().is_none_or(|access| access.contains(['r', 'w']))
    };
    if rules.is_some_and(|rules| rules.iter().any(every)) {
        return Err(needs_privilege("every device"));
    }
    Ok(())
}

/// An error for what a privileged VM would allow.
pub(super) fn needs_privilege(what: &str) -> Error {
    Error::new(
        Kind::Denied,
        format!(
            "the container asks for {what}: that needs a privileged VM (cloister.privileged=1 on its kernel command line)"
        ),
    )
}
