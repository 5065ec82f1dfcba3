//! An OCI runtime spec from the host, made fit for this guest.
//!
//! Restrictions inside the guest are a second line of defence; the VM is the first. A spec without them (all
//! capabilities, every device) is refused unless the kernel command line says `cloister.privileged=1`, and masked and
//! read-only paths that a spec leaves out are added.

use std::path::{Component, Path};

use libcontainer::oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespaceType, LinuxResources,
    Process, RootBuilder, Spec, User,
};

use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::rootfs::SHARES;
use crate::users;
use cloister_protocol::limits;

/// Hidden from containers unless the spec says itself what to hide.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

/// Read-only in containers unless the spec says itself what is.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Capabilities of Linux 6.12: a set of as many is "all of them".
const ALL_CAPABILITIES: usize = 41;

/// Reads a spec.
///
/// # Errors
/// When it is no OCI runtime spec, or asks for what is not possible here.
pub fn parse(json: &[u8]) -> Result<Spec> {
    let spec: Spec =
        serde_json::from_slice(json).map_err(|e| Error::invalid(format!("the container's OCI spec: {e}")))?;
    if spec.hooks().is_some() {
        return Err(Error::invalid(
            "the container's OCI spec has hooks: there is nothing in the guest to run",
        ));
    }
    let Some(linux) = spec.linux() else {
        return Err(Error::invalid("the container's OCI spec has no linux section"));
    };
    if !has_namespace(linux, LinuxNamespaceType::Mount) {
        return Err(Error::invalid("the container's OCI spec has no mount namespace"));
    }
    for mount in spec.mounts().iter().flatten() {
        check_source(
            mount.typ().as_deref(),
            mount.source().as_deref(),
            mount.options().as_deref().unwrap_or_default(),
        )?;
    }
    Ok(spec)
}

/// Reads an OCI process.
///
/// # Errors
/// When it is none.
pub fn parse_process(json: &[u8]) -> Result<Process> {
    serde_json::from_slice(json).map_err(|e| Error::invalid(format!("the OCI process: {e}")))
}

/// Bind mounts come from shares only: nothing else in the guest is a container's business.
fn check_source(typ: Option<&str>, source: Option<&Path>, options: &[String]) -> Result<()> {
    let bind = typ == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind");
    let Some(source) = source.filter(|_| bind) else { return Ok(()) };
    let plain = source.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let allowed = source.starts_with(SHARES) && source != Path::new(SHARES);
    if plain && allowed {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "bind mount of {}: only folders and files below {SHARES} can be bound",
        source.display()
    )))
}

/// Makes a spec fit: where its root and cgroup are, who its process is, and the restrictions.
///
/// # Errors
/// [`Kind::Denied`] when it asks for more than this guest allows.
pub fn fit(
    spec: &mut Spec,
    id: &str,
    root: &Path,
    user: Option<&users::User>,
    home: &str,
    privileged: bool,
) -> Result<()> {
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let fitted = RootBuilder::default().path(root).readonly(read_only).build();
    spec.set_root(Some(fitted.map_err(|e| Error::invalid(format!("the container's root: {e}")))?));

    let mut process =
        spec.process().clone().ok_or_else(|| Error::invalid("the container's OCI spec has no process"))?;
    fit_process(&mut process, user, home, privileged)?;
    spec.set_process(Some(process));

    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(Cgroup::spec_path(id)));
    if !privileged {
        restrict(&mut linux)?;
    }
    if !has_namespace(&linux, LinuxNamespaceType::Uts) {
        spec.set_hostname(None);
    }
    spec.set_linux(Some(linux));
    Ok(())
}

/// Makes a process fit.
///
/// # Errors
/// [`Kind::Denied`] when it asks for more than this guest allows, [`Kind::Invalid`] when it is malformed.
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

fn restrict(linux: &mut Linux) -> Result<()> {
    let strings = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect());
    if linux.masked_paths().as_ref().is_none_or(Vec::is_empty) {
        linux.set_masked_paths(strings(&MASKED));
    }
    if linux.readonly_paths().as_ref().is_none_or(Vec::is_empty) {
        linux.set_readonly_paths(strings(&READ_ONLY));
    }
    let rules =
        linux.resources().as_ref().and_then(|resources: &LinuxResources| resources.devices().as_deref());
    let every = |rule: &libcontainer::oci_spec::runtime::LinuxDeviceCgroup| {
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

fn needs_privilege(what: &str) -> Error {
    Error::new(
        Kind::Denied,
        format!(
            "the container asks for {what}: that needs a privileged VM (cloister.privileged=1 on its kernel command line)"
        ),
    )
}

/// Whether a container has a namespace of its own of a type, or joins one.
pub fn has_namespace(linux: &Linux, typ: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == typ)
}

/// The `CLONE_NEW…` flags of a container's namespaces.
pub fn namespaces(linux: &Linux) -> i32 {
    let flag = |typ| match typ {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => 0x80, // CLONE_NEWTIME of the kernel's sched.h
    };
    linux.namespaces().iter().flatten().fold(0, |flags, namespace| flags | flag(namespace.typ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(process: &str, linux: &str, rest: &str) -> Spec {
        let json = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}}{process}}},
               "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}]{linux}}}{rest}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn fitted(spec: &mut Spec, privileged: bool) -> Result<()> {
        fit(spec, "id", Path::new("/root"), None, "/home/x", privileged)
    }

    #[test]
    fn what_is_left_out_is_restricted() {
        let mut spec = spec("", "", "");
        fitted(&mut spec, false).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED.len());
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/cloister/id")));
        let process = spec.process().as_ref().unwrap();
        assert!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().is_empty());
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/x".to_owned()));
    }

    #[test]
    fn everything_needs_a_privileged_vm() {
        let all: Vec<String> = CAPABILITIES.split(' ').map(|name| format!("CAP_{name}")).collect();
        assert_eq!(all.len(), ALL_CAPABILITIES);
        let capabilities =
            format!(r#","capabilities":{{"bounding":{}}}"#, serde_json::to_string(&all).unwrap());
        let devices = r#","resources":{"devices":[{"allow":true,"access":"rwm"}]}"#;
        for (process, linux) in [(capabilities.as_str(), ""), ("", devices)] {
            let error = fitted(&mut spec(process, linux, ""), false).unwrap_err();
            assert_eq!(error.kind, Kind::Denied, "{error}");
            fitted(&mut spec(process, linux, ""), true).unwrap();
        }
    }

    const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
        LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
        SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
        AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON \
        BPF CHECKPOINT_RESTORE";

    #[test]
    fn denying_rules_and_single_devices_are_fine() {
        let devices = r#","resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},{"allow":true,"type":"c","access":"m"}]}"#;
        fitted(&mut spec("", devices, ""), false).unwrap();
    }

    #[test]
    fn bind_mounts_come_from_shares_only() {
        let mount = |source: &str| {
            let rest = format!(
                r#","mounts":[{{"destination":"/x","type":"bind","source":"{source}","options":["rbind"]}}]"#
            );
            parse(serde_json::to_string(&spec("", "", &rest)).unwrap().as_bytes())
        };
        assert!(mount("/run/cloister/shares/tag").is_ok() && mount("/run/cloister/shares/tag/a/b").is_ok());
        for source in
            ["/", "/run/cloister/shares", "/run/cloister/shares/../c", "/run/cloister/sharesx", "/dev"]
        {
            assert!(mount(source).is_err(), "{source}");
        }
    }

    #[test]
    fn false_no_new_privileges_is_the_same_as_none() {
        let mut with = spec(r#","noNewPrivileges":false"#, "", "");
        fitted(&mut with, false).unwrap();
        assert_eq!(with.process().as_ref().unwrap().no_new_privileges(), None);
    }
}
