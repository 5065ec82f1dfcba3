//! From a monitor that runs to an agent that has answered.

use std::time::Duration;

use cloister_protocol::v1;
use cloister_vmm::{Egress, Tap};

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
    egress: bool,
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
        // The guest finds it as it comes up.
        if let Some(egress) = config.egress.clone() {
            machine.plug_egress(egress).await?;
        }
        Ok(Self {
            machine,
            timings,
            deadline: config.boot_deadline,
            privileged: config.privileged,
            egress: config.egress.is_some(),
        })
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
        let Self { machine, mut timings, deadline, privileged, egress } = self;
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
        let sandbox = Sandbox::new(machine, agent, guest, timings);
        if egress {
            sandbox.while_alive(sandbox.agent().configure_network(way_out())).await?;
        }
        Ok(sandbox)
    }
}

/// What the agent makes of a way out's interface.
fn way_out() -> v1::ConfigureNetworkRequest {
    const NAME: &str = "eth0";
    let octets = |address: std::net::Ipv4Addr| address.octets().to_vec();
    let hop = v1::NextHop {
        interface: NAME.to_owned(),
        gateway: octets(Egress::GATEWAY),
        ..v1::NextHop::default()
    };
    v1::ConfigureNetworkRequest {
        interfaces: vec![v1::Interface {
            name: NAME.to_owned(),
            mac: Egress::MAC.to_vec(),
            mtu: Egress::MTU,
            addresses: vec![v1::Prefix { address: octets(Egress::GUEST), length: Egress::PREFIX.into() }],
        }],
        // The kernel's own routes are asked for too: addresses are set without.
        routes: vec![
            v1::Route {
                destination: Some(v1::Prefix {
                    address: octets(std::net::Ipv4Addr::new(169, 254, 1, 0)),
                    length: Egress::PREFIX.into(),
                }),
                family: 4,
                scope: libc::RT_SCOPE_LINK.into(),
                hops: vec![v1::NextHop { gateway: Vec::new(), ..hop.clone() }],
                ..v1::Route::default()
            },
            v1::Route {
                destination: Some(v1::Prefix::default()),
                family: 4,
                hops: vec![hop],
                ..v1::Route::default()
            },
        ],
        ..v1::ConfigureNetworkRequest::default()
    }
}
