//! Signals to processes, and the end of all of them.

use std::time::{Duration, Instant};

use cloister_protocol::v1::ProcessRef;

use super::{Containers, KILL};
use crate::error::{Error, Result};

impl Containers {
    /// Sends a signal to one process, or to every process of its container.
    ///
    /// # Errors
    /// When there is no such process, or it has ended.
    pub fn signal(&self, reference: Option<ProcessRef>, signal: i32, all: bool) -> Result<()> {
        let reference = reference.ok_or_else(|| Error::invalid("no process named"))?;
        let container = self.get(&reference.container_id)?;
        if all {
            return container.cgroup.signal(signal, KILL);
        }
        let process = container.process(&reference.exec_id)?;
        if self.reaper.signal(process.pid, signal)? {
            return Ok(());
        }
        Err(Error::state(format!("process {:?} of container {} has ended", reference.exec_id, container.id)))
    }

    /// Asks every container to end, and ends what is left at the deadline. Blocks.
    pub fn end_all(&self, deadline: Instant) {
        let containers = self.all();
        let running = || {
            let inits = containers.iter().filter_map(|container| container.process("").ok());
            inits.filter(|init| init.exit().is_none()).collect::<Vec<_>>()
        };
        for init in running() {
            if let Err(error) = self.reaper.signal(init.pid, libc::SIGTERM) {
                tracing::warn!(%error, "shutdown");
            }
        }
        while !running().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for container in containers {
            if let Err(error) = self.delete(&container.id) {
                tracing::warn!(%error, container = container.id, "shutdown");
            }
        }
    }
}
