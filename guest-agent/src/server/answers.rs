//! Answers that are put together from several places.

use std::sync::Arc;

use cloister_protocol::{v1, version};

use super::Agent;
use crate::boot::boottime;
use crate::containers::{Containers, Process};
use crate::error::{Error, Result};
use crate::host::{add_entropy, set_clock};

/// Takes the time and entropy of a host of our own version.
pub fn hello(agent: &Agent, request: &v1::HelloRequest) -> Result<v1::HelloResponse> {
    match version::check(&request.version) {
        Ok(version::Match::Exact) => {}
        Ok(version::Match::OtherPatch) => {
            tracing::warn!(host = request.version, "the host is of another patch release");
        }
        Err(error) => return Err(Error::state(error.to_string())),
    }
    if request.unix_nanos > 0 {
        set_clock(request.unix_nanos)?;
    }
    if !request.entropy.is_empty() {
        add_entropy(&request.entropy)?;
    }
    Ok(v1::HelloResponse {
        version: version::VERSION.to_string(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        agent_started_nanos: agent.started,
        agent_listening_nanos: agent.listening,
        privileged: agent.privileged,
    })
}

/// What runs.
pub fn health(containers: &Containers) -> v1::HealthResponse {
    let containers = containers.all();
    let running = |(_, process): &(String, Arc<Process>)| process.exit().is_none();
    let processes = containers.iter().flat_map(|container| container.processes()).filter(running).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::HealthResponse {
        uptime_nanos: boottime(),
        containers: count(containers.len()),
        processes: count(processes),
    }
}

/// Every process of every container that is not deleted.
pub fn list(containers: &Containers) -> v1::ListResponse {
    let mut processes = Vec::new();
    for container in containers.all() {
        for (exec_id, process) in container.processes() {
            let reference = v1::ProcessRef { container_id: container.id.clone(), exec_id };
            let running = process.exit().is_none();
            processes.push(v1::list_response::Process {
                process: Some(reference),
                pid: process.pid,
                running,
            });
        }
    }
    v1::ListResponse { processes }
}

/// How a process ended, once it has.
pub async fn wait(containers: &Containers, reference: v1::ProcessRef) -> Result<v1::WaitResponse> {
    let container = containers.get(&reference.container_id)?;
    let exit = container.process(&reference.exec_id)?.wait().await?;
    let killed = exit.code == 128 + libc::SIGKILL.unsigned_abs();
    // A kill anywhere in the container counts for its init process; for another one only if it was killed itself.
    let oom_killed = (killed || reference.exec_id.is_empty()) && container.cgroup.oom_kills() > 0;
    Ok(v1::WaitResponse { exit_code: exit.code, exited_at: exit.at, oom_killed })
}
