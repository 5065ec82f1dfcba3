//! An OCI runtime spec from the host, made fit for this guest.
//!
//! Restrictions inside the guest are a second line of defence; the VM is the first. A spec without them (all
//! capabilities, every device) is refused unless the kernel command line says `cloister.privileged=1`, and masked and
//! read-only paths that a spec leaves out are added.

mod binds;
mod devices;
mod namespaces;
mod places;
mod process;
mod restrict;

use std::path::Path;

use cloister_protocol::v1;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Process, RootBuilder, Spec};

pub use binds::{clone, split, stage};
pub use namespaces::{Pids, has_own_pids, namespaces};
pub use places::resolve;
pub use process::fit_process;

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::users;

/// What a spec does not say about its container.
pub struct Fit<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its root.
    pub root: &'a Path,
    /// Who its process runs as, when that was resolved.
    pub user: Option<&'a users::User>,
    /// The process's home folder.
    pub home: &'a str,
    /// The kernel command line allows privileged containers.
    pub privileged: bool,
    /// Whose process ids it sees.
    pub pids: &'a Pids,
    /// Disks that it sees as device nodes.
    pub block_devices: &'a [v1::BlockDevice],
}

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
    namespaces::check(linux)?;
    binds::check(&spec)?;
    Ok(spec)
}

/// Reads an OCI process.
///
/// # Errors
/// When it is none.
pub fn parse_process(json: &[u8]) -> Result<Process> {
    serde_json::from_slice(json).map_err(|e| Error::invalid(format!("the OCI process: {e}")))
}

/// Makes a spec fit: where its root and cgroup are, who its process is, its devices and the restrictions. Gives the
/// device nodes that the runtime cannot make, because they are not below /dev.
///
/// # Errors
/// [`Kind::Denied`](crate::error::Kind::Denied) when it asks for more than this guest allows.
pub fn fit(spec: &mut Spec, with: &Fit<'_>) -> Result<Vec<devices::Node>> {
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let fitted = RootBuilder::default().path(with.root).readonly(read_only).build();
    spec.set_root(Some(fitted.map_err(|e| Error::invalid(format!("the container's root: {e}")))?));

    let mut process =
        spec.process().clone().ok_or_else(|| Error::invalid("the container's OCI spec has no process"))?;
    fit_process(&mut process, with.user, with.home, with.privileged)?;
    spec.set_process(Some(process));

    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(Cgroup::spec_path(with.id)));
    if !with.privileged {
        restrict::restrict(&mut linux)?;
    }
    namespaces::fit(&mut linux, with.pids)?;
    let nodes = devices::fit(&mut linux, with.block_devices)?;
    if !namespaces::has_namespace(&linux, LinuxNamespaceType::Uts) {
        spec.set_hostname(None);
    }
    spec.set_linux(Some(linux));
    Ok(nodes)
}

#[cfg(test)]
mod tests;
