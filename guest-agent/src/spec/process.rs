//! The process of a container, or one more of it.

use libcontainer::oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, User,
};

use super::restrict::needs_privilege;
use crate::error::{Error, Result};
use crate::users;
use cloister_protocol::limits;

/// Capabilities of Linux 6.12: a set of as many is "all of them".
pub(super) const ALL_CAPABILITIES: usize = 41;

/// Makes a process fit.
///
/// # Errors
/// [`crate::error::Kind::Denied`] when it asks for more than this guest allows, [`crate::error::Kind::Invalid`] when it is malformed.
pub fn fit_process(
    process: &mut Process,
    user: Option<&users::User>,
    home: &str,
    privileged: bool,
) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    let env = process.env().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::invalid("the process has no arguments"));
    }
    if args.len() + env.len() > limits::STRINGS
        || args.iter().chain(env).any(|s| s.len() > limits::STRING_BYTES)
    {
        return Err(Error::invalid("the process has too many or too long arguments or variables"));
    }
    if !process.cwd().is_absolute() {
        process.set_cwd(if process.cwd().as_os_str().is_empty() {
            "/".into()
        } else {
            return Err(Error::invalid(format!(
                "working folder {} is not absolute",
                process.cwd().display()
            )));
        });
    }
    if let Some(user) = user {
        let mut fitted = User::default();
        fitted.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
        fitted.set_umask(process.user().umask());
        process.set_user(fitted);
    }
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={home}"));
    }
    process.set_env(Some(env));
    // libcontainer reads "false" as "load the seccomp filter last", which then fails for lack of CAP_SYS_ADMIN.
    process.set_no_new_privileges(process.no_new_privileges().filter(|set| *set));
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    let capabilities = explicit(process.capabilities().as_ref())?;
    if !privileged && capabilities.bounding().as_ref().is_some_and(|set| set.len() >= ALL_CAPABILITIES) {
        return Err(needs_privilege("all capabilities"));
    }
    process.set_capabilities(Some(capabilities));
    Ok(())
}

/// Sets that are not given are empty: libcontainer would keep what the agent has.
fn explicit(given: Option<&LinuxCapabilities>) -> Result<LinuxCapabilities> {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        given.and_then(|g| of(g).clone()).unwrap_or_default()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(set(LinuxCapabilities::bounding))
        .effective(set(LinuxCapabilities::effective))
        .permitted(set(LinuxCapabilities::permitted))
        .inheritable(set(LinuxCapabilities::inheritable))
        .ambient(set(LinuxCapabilities::ambient))
        .build()
        .map_err(|e| Error::invalid(format!("the process's capabilities: {e}")))
}
