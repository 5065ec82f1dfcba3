//! What steps may take of the machine, so that buildkitd always answers.
//!
//! ```text
//! buildkitd            the container: its limit is the build's
//! ├─ init              buildkitd itself, which moves there: memory that is never taken from it, most of the processor
//! └─ buildkit/ID       its steps: less memory than the container has, a bounded number of processes
//! ```
//!
//! Without that the kernel would take the pages of programs away from buildkitd too when a step uses up memory little by little, and
//! read them again for ever: nobody answers. And the process that is killed in the end can be buildkitd. Steps that
//! only wait for memory are ended by the agent.

use std::time::{Duration, Instant};

use cloister_sandbox::Agent;
use oci_spec::runtime::LinuxResources;

use super::Result;

/// Where buildkitd moves itself (`BUILDKIT_SETUP_CGROUPV2_ROOT`).
const OWN: &str = "init";
/// Where steps are: containerd's namespace of that name, which buildkitd uses unless it is told of a parent.
const STEPS: &str = "buildkit";
/// Most memory that steps leave to buildkitd, in bytes, and its least part of all.
const RESERVE: (u64, u64) = (96 << 20, 4);
/// Bytes of their memory for each process or thread of all steps together, and the least and the most of these. Even a process
/// that does nothing takes about half of that.
const PROCESS: u64 = 512 << 10;
const PROCESSES: (u64, u64) = (256, 32_768);
/// How long buildkitd may take to set up its cgroups once it listens, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
/// Share of the processor of buildkitd, where each other has 100.
const WEIGHT: u64 = 1000;

/// Bytes of memory that all steps together may use of `memory_bytes`.
pub fn steps_memory(memory_bytes: u64) -> u64 {
    memory_bytes - (memory_bytes / RESERVE.1).min(RESERVE.0)
}

/// Sets the limits below `container`, whose own limit is `memory_bytes`. To be called as soon as buildkitd listens.
///
/// # Errors
/// When the agent refuses.
pub async fn limit(agent: &Agent, container: &str, memory_bytes: u64) -> Result<()> {
    let steps = steps_memory(memory_bytes);
    let own = resources([("memory.min", memory_bytes - steps), ("cpu.weight", WEIGHT)]);
    let theirs =
        resources([("memory.max", steps), ("pids.max", (steps / PROCESS).clamp(PROCESSES.0, PROCESSES.1))]);
    patiently(|| agent.update_cgroup(container, OWN, &own, false)).await?;
    patiently(|| agent.update_cgroup(container, STEPS, &theirs, true)).await
}

/// buildkitd listens a moment before it has given the controllers on.
async fn patiently<F>(set: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = std::result::Result<(), cloister_sandbox::Error>>,
{
    let begun = Instant::now();
    loop {
        match set().await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(error) => tracing::trace!(%error, "not yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn resources(limits: [(&str, u64); 2]) -> LinuxResources {
    let unified = limits.map(|(file, value)| (file.to_owned(), value.to_string()));
    let mut resources = LinuxResources::default();
    resources.set_unified(Some(unified.into()));
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn steps_leave_a_quarter_and_at_most_96_mib() {
        assert_eq!(steps_memory(128 * MIB), 96 * MIB);
        assert_eq!(steps_memory(384 * MIB), 288 * MIB);
        assert_eq!(steps_memory(4096 * MIB), 4000 * MIB);
    }
}
