//! Namespaces: those of the pod are the guest's own, the others the container's.

use std::path::PathBuf;

use libcontainer::oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec,
};

use crate::error::{Error, Result};

/// Whose process ids a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pids {
    /// What the spec says: its own or, without a namespace there, the guest's.
    Spec,
    /// Those of the namespace at a path.
    Shared(PathBuf),
    /// The guest's.
    Guest,
}

/// Refuses what only a host could know the meaning of.
pub(super) fn check(linux: &Linux) -> Result<()> {
    if !has_namespace(linux, LinuxNamespaceType::Mount) {
        return Err(Error::invalid("the container's OCI spec has no mount namespace"));
    }
    match linux.namespaces().iter().flatten().find(|namespace| namespace.path().is_some()) {
        Some(namespace) => Err(Error::invalid(format!(
            "the container's OCI spec joins the {} namespace at a path of the host; leave it out to use the guest's",
            namespace.typ()
        ))),
        None => Ok(()),
    }
}

/// Puts the PID namespace in, and a cgroup namespace, which a host with cgroup v1 leaves out.
pub(super) fn fit(linux: &mut Linux, pids: &Pids) -> Result<()> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let mut add = |typ, path: Option<&PathBuf>| -> Result<()> {
        namespaces.retain(|namespace: &LinuxNamespace| namespace.typ() != typ);
        let mut namespace = LinuxNamespaceBuilder::default().typ(typ);
        if let Some(path) = path {
            namespace = namespace.path(path);
        }
        let built = namespace.build();
        namespaces.push(built.map_err(|e| Error::invalid(format!("the container's namespaces: {e}")))?);
        Ok(())
    };
    add(LinuxNamespaceType::Cgroup, None)?;
    match pids {
        Pids::Spec => {}
        Pids::Shared(path) => add(LinuxNamespaceType::Pid, Some(path))?,
        Pids::Guest => namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid),
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

/// Whether a container has a namespace of its own of a type, or joins one.
pub(super) fn has_namespace(linux: &Linux, typ: LinuxNamespaceType) -> bool {
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

/// Whether the end of a container's init process is the end of all its processes.
pub fn has_own_pids(spec: &Spec) -> bool {
    let mut namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}
