//! What the containers of a pod share: names, kernel settings, the network, processors and memory.

use std::collections::HashMap;
use std::time::Duration;

use cloister_protocol::v1;

use super::{Agent, QUICK, SLOW, call};
use crate::error::Error;

/// Most processors a guest may claim to have.
const CPUS: u32 = 4096;

/// How long the guest may take to use what it was given.
const GROW: Duration = Duration::from_secs(60);

/// What a guest has after it grew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// Processors that are online.
    pub cpus: u32,
    /// Bytes of memory, as the guest counts them: less than what the machine was given.
    pub memory_bytes: u64,
}

impl Agent {
    /// Sets the hostname, kernel settings and the size of `/run/cloister/shm` (0 for 64 MiB), before the first
    /// container.
    ///
    /// # Errors
    /// When the agent refuses a name or value.
    pub async fn set_up_pod(
        &self,
        hostname: &str,
        sysctls: HashMap<String, String>,
        shm_bytes: u64,
    ) -> Result<(), Error> {
        let request = v1::SetUpPodRequest { hostname: hostname.to_owned(), sysctls, shm_bytes };
        call("set the pod up", QUICK, self.client.clone().set_up_pod(request)).await?;
        Ok(())
    }

    /// Makes the guest's network what the request says; interfaces that are still being plugged are waited for.
    ///
    /// # Errors
    /// When the agent refuses, or an interface does not appear.
    pub async fn configure_network(&self, request: v1::ConfigureNetworkRequest) -> Result<(), Error> {
        call("set up the guest's network", SLOW, self.client.clone().configure_network(request)).await?;
        Ok(())
    }

    /// Brings `cpus` processors online (0 leaves them) and waits until the guest uses `memory_bytes` (0 does not wait);
    /// says what there is.
    ///
    /// # Errors
    /// When the agent refuses, or the memory does not arrive in time.
    pub async fn grow(&self, cpus: u32, memory_bytes: u64) -> Result<Grown, Error> {
        const CALL: &str = "grow the guest";
        let request = v1::GrowRequest { cpus, memory_bytes };
        let reply = call(CALL, GROW, self.client.clone().grow(request)).await?;
        if !(1..=CPUS).contains(&reply.cpus) || reply.memory_bytes == 0 || reply.memory_bytes > 1 << 52 {
            return Err(Error::Reply { call: CALL, why: "a guest has no such size" });
        }
        Ok(Grown { cpus: reply.cpus, memory_bytes: reply.memory_bytes })
    }
}
