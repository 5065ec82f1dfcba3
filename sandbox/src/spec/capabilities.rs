//! Capability sets, by the names of capabilities(7).

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// What a container's root keeps unless it is privileged: the set docker and containerd both grant.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability of Linux 5.9 and later, for a privileged container.
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// The sets of a container process. Inheritable and ambient stay empty, so a process that is not root gains
/// nothing across execve(2).
pub fn capabilities(privileged: bool) -> LinuxCapabilities {
    let set: Capabilities =
        if privileged { ALL.into_iter().collect() } else { DEFAULT.into_iter().collect() };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_container_has_no_administrator_capability() {
        let capabilities = capabilities(false);
        let bounding = capabilities.bounding().clone().unwrap();
        assert_eq!(bounding.len(), 14);
        for strong in
            [Capability::SysAdmin, Capability::NetAdmin, Capability::SysModule, Capability::SysPtrace]
        {
            assert!(!bounding.contains(&strong), "{strong}");
        }
        assert!(capabilities.ambient().is_none() && capabilities.inheritable().is_none());
    }

    #[test]
    fn a_privileged_container_has_every_capability() {
        assert_eq!(capabilities(true).effective().clone().unwrap().len(), 41);
    }
}
