//! From a monitor that runs to an agent that has answered.

use std::time::Duration;

use cloister_vmm::Tap;

use crate::agent::Agent;
use crate::error::Error;
use crate::machine::{Machine, MachineConfig};
use crate::sandbox::Sandbox;
use crate::timings::{Step, Timings};

/// A microVM whose kernel comes up; dropping it ends it.
pub struct Booting {
    machine: Machine,
    timings: Timings,
    deadline: Duration,
    privileged: bool,
}

impl Booting {
    /// Starts a generic virtual machine; returns when its processors run.
    ///
    /// # Errors
    /// When the machine does not start.
    pub async fn start(config: &MachineConfig) -> Result<Self, Error> {
        let mut timings = Timings::start();
        let machine = Machine::start(config).await?;
        timings.reached(Step::Vmm);
        Ok(Self { machine, timings, deadline: config.boot_deadline, privileged: config.privileged })
    }

    /// Process id of the machine's monitor.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Plugs a network interface, which the guest then finds as it comes up.
    ///
    /// # Errors
    /// When it can't be plugged.
    pub async fn plug_tap(&self, tap: Tap) -> Result<(), Error> {
        self.machine.plug_tap(tap).await
    }

    /// Greets the agent.
    ///
    /// # Errors
    /// When the machine ends, or its agent does not answer in time or is of another release.
    pub async fn ready(self) -> Result<Sandbox, Error> {
        let Self { machine, mut timings, deadline, privileged } = self;
        let (agent, guest) = tokio::select! {
            answer = Agent::connect(machine.dialer(), deadline) => answer.map_err(|error| {
                Error::Boot { cause: Box::new(error), console: machine.last_words() }
            })?,
            reason = machine.ended() => return Err(Error::Ended(reason)),
        };
        timings.reached(Step::Agent);
        if privileged && !guest.privileged {
            return Err(Error::Reply {
                call: "say hello to the guest agent",
                why: "the guest does not know that it may run privileged containers",
            });
        }
        Ok(Sandbox::new(machine, agent, guest, timings))
    }
}
