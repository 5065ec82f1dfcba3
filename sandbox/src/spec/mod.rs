//! From an image's configuration and a user's wishes to an OCI runtime specification.
//!
//! The result is what docker would hand to its runtime. The network namespace is missing on purpose: the VM has one
//! network and the container is its only user.

mod capabilities;
mod mounts;
mod seccomp;

use cloister_image::ImageConfig;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use serde::{Deserialize, Serialize};

use crate::error::Error;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Microseconds of the cgroup period that a CPU limit is counted in.
const CPU_PERIOD: u64 = 100_000;

/// A folder of the guest seen at another place by the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path in the guest.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What a user may say about a container, on top of what its image says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wishes {
    /// Replaces the image's `Cmd`; with no entrypoint at all it is the program.
    pub command: Vec<String>,
    /// Replaces the image's `Entrypoint` and drops its `Cmd`, as docker does.
    pub entrypoint: Option<String>,
    /// `KEY=VALUE`, added after the image's own and winning over them.
    pub env: Vec<String>,
    /// Replaces the image's `WorkingDir`; absolute.
    pub cwd: Option<String>,
    /// Name the container sees as its host's.
    pub hostname: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Lifts capability, seccomp, device and path restrictions inside the guest.
    pub privileged: bool,
    /// Whether the root filesystem can't be written.
    pub read_only_rootfs: bool,
    /// Bytes the container may use; `None` leaves it the VM's memory.
    pub memory_bytes: Option<u64>,
    /// Processors the container may use, in thousandths; `None` leaves it the VM's.
    pub cpu_millis: Option<u64>,
    /// Folders of the guest to show in the container.
    pub binds: Vec<BindMount>,
}

/// Builds the specification. The user is not resolved here: names live in the image's files, so the agent does it.
pub fn build(image: &ImageConfig, wishes: &Wishes) -> Result<Spec, Error> {
    let process = process(image, wishes)?;
    let invalid = Error::Spec;
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect::<Result<Vec<_>, _>>()
    .map_err(invalid)?;

    let mut resources =
        LinuxResourcesBuilder::default().devices(mounts::device_rules(wishes.privileged).map_err(invalid)?);
    if let Some(bytes) = wishes.memory_bytes {
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        resources = resources
            .memory(LinuxMemoryBuilder::default().limit(limit).swap(limit).build().map_err(invalid)?);
    }
    if let Some(millis) = wishes.cpu_millis {
        let quota = i64::try_from(millis.saturating_mul(CPU_PERIOD / 1000)).unwrap_or(i64::MAX);
        resources = resources
            .cpu(LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD).build().map_err(invalid)?);
    }

    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources.build().map_err(invalid)?)
        .devices(mounts::devices(wishes.privileged).map_err(invalid)?)
        .masked_paths(mounts::masked_paths(wishes.privileged))
        .readonly_paths(mounts::read_only_paths(wishes.privileged));
    if !wishes.privileged {
        linux = linux.seccomp(seccomp::default_profile().map_err(invalid)?);
    }
    SpecBuilder::default()
        .version("1.2.0")
        .process(process)
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(wishes.read_only_rootfs)
                .build()
                .map_err(invalid)?,
        )
        .hostname(wishes.hostname.clone())
        .mounts(mounts::mounts(wishes.privileged, &wishes.binds).map_err(invalid)?)
        .linux(linux.build().map_err(invalid)?)
        .build()
        .map_err(invalid)
}

/// The process of a container, or (with the command replaced) one more of it.
pub fn process(image: &ImageConfig, wishes: &Wishes) -> Result<Process, Error> {
    let args = arguments(image, wishes)?;
    process_for(image, wishes, args)
}

/// One more process of a running container: the image's environment and folder, the caller's own command.
pub fn exec_process(image: &ImageConfig, wishes: &Wishes) -> Result<Process, Error> {
    if wishes.command.is_empty() {
        return Err(Error::NoCommand);
    }
    process_for(image, wishes, wishes.command.clone())
}

fn process_for(image: &ImageConfig, wishes: &Wishes, args: Vec<String>) -> Result<Process, Error> {
    let cwd = match &wishes.cwd {
        Some(cwd) => cwd.as_str(),
        None if image.working_dir.is_empty() => "/",
        None => image.working_dir.as_str(),
    };
    if !cwd.starts_with('/') {
        return Err(Error::WorkingDir(cwd.to_owned()));
    }
    ProcessBuilder::default()
        .terminal(wishes.terminal)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build().map_err(Error::Spec)?)
        .args(args)
        .env(environment(image, wishes))
        .cwd(cwd)
        .capabilities(capabilities::capabilities(wishes.privileged))
        .rlimits(limits().map_err(Error::Spec)?)
        .no_new_privileges(false)
        .oom_score_adj(0)
        .build()
        .map_err(Error::Spec)
}

/// docker's rule: a new entrypoint drops the image's command; a new command replaces it.
fn arguments(image: &ImageConfig, wishes: &Wishes) -> Result<Vec<String>, Error> {
    let mut args: Vec<String> = match &wishes.entrypoint {
        Some(program) if program.is_empty() => Vec::new(),
        Some(program) => vec![program.clone()],
        None => image.entrypoint.clone(),
    };
    if !wishes.command.is_empty() {
        args.extend(wishes.command.iter().cloned());
    } else if wishes.entrypoint.is_none() {
        args.extend(image.cmd.iter().cloned());
    }
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(Error::NoCommand),
    }
}

/// Defaults, then the image's, then the caller's; the last value of a key wins and keeps the first one's place.
fn environment(image: &ImageConfig, wishes: &Wishes) -> Vec<String> {
    let mut all: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    if !wishes.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", wishes.hostname));
    }
    if wishes.terminal {
        all.push("TERM=xterm".to_owned());
    }
    for entry in image.env.iter().chain(&wishes.env) {
        let key = key_of(entry);
        match all.iter_mut().find(|known| key_of(known) == key) {
            Some(known) => known.clone_from(entry),
            None => all.push(entry.clone()),
        }
    }
    all
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

/// Open files as systemd starts services: many programs still walk the whole soft limit.
fn limits() -> Result<Vec<PosixRlimit>, oci_spec::OciSpecError> {
    Ok(vec![
        PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(1024u64)
            .hard(524_288u64)
            .build()?,
    ])
}

#[cfg(test)]
mod tests;
