//! One running microVM and what is plugged into it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cloister_vmm::{Metrics, Tap};

use crate::agent::{Agent, Guest, NewContainer};
use crate::booting::Booting;
use crate::container::{Container, Share};
use crate::dial::Dialer;
use crate::disks::Disks;
use crate::error::Error;
use crate::machine::{Machine, MachineConfig};
use crate::process::{Attached, Io, Process};
use crate::scratch::Scratch;
use crate::timings::{Step, Timings};

/// How long the end of a sandbox waits for the guest to write back what belongs to the host's folders.
const FLUSH: Duration = Duration::from_secs(10);

/// A microVM whose agent has answered. Its methods may be called from several tasks; plugging happens one at a time.
pub struct Sandbox {
    machine: Machine,
    agent: Agent,
    guest: Guest,
    timings: Mutex<Timings>,
    disks: tokio::sync::Mutex<Disks>,
    used: Mutex<Used>,
}

/// What the guest has to let go of before it ends.
#[derive(Default)]
struct Used {
    shares: Vec<String>,
    containers: BTreeSet<String>,
}

impl Sandbox {
    /// Starts a generic virtual machine and greets its agent.
    ///
    /// # Errors
    /// When the machine does not start, ends again, or its agent does not answer in time or is of another release.
    pub async fn boot(config: &MachineConfig) -> Result<Self, Error> {
        Booting::start(config).await?.ready().await
    }

    pub(crate) fn new(machine: Machine, agent: Agent, guest: Guest, timings: Timings) -> Self {
        let (timings, disks) = (Mutex::new(timings), tokio::sync::Mutex::default());
        Self { machine, agent, guest, timings, disks, used: Mutex::default() }
    }

    /// The guest's agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// What the agent said about its guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// How other processes of the host reach the guest.
    pub fn dialer(&self) -> Dialer {
        self.machine.dialer()
    }

    /// How long each step of the start took, so far.
    pub fn timings(&self) -> Timings {
        self.timings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Process id of the machine's monitor.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Whether the host ever failed to read or write what the guest asked a disk for: what is on it may be half there.
    pub fn disk_failed(&self) -> bool {
        self.machine.disk_failed()
    }

    /// The machine's counters, as the host sees them.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        self.machine.metrics().await
    }

    /// Shows a folder of the host in the guest and returns where it is there.
    ///
    /// # Errors
    /// When the share's daemon does not start or the guest can't mount it.
    pub async fn share(&self, share: &Share) -> Result<String, Error> {
        self.machine.plug_share(share).await?;
        let path = self.while_alive(self.agent.mount_share(&share.tag, share.read_only)).await?;
        self.used().shares.push(share.tag.clone());
        Ok(path)
    }

    /// Plugs a file or block device of the host, opened as it is to be used, as a raw disk. Returns its serial.
    ///
    /// # Errors
    /// When it is no such file or can't be plugged.
    pub async fn plug_disk(&self, file: OwnedFd, read_only: bool) -> Result<String, Error> {
        self.disks.lock().await.plug_named(&self.machine, file, read_only, false).await
    }

    /// As [`Sandbox::plug_disk`] for a writable file whose content is of use only when the guest has unmounted it in the end:
    /// until then nothing it writes need reach the host's disk.
    ///
    /// # Errors
    /// As [`Sandbox::plug_disk`].
    pub async fn plug_temporary(&self, file: OwnedFd) -> Result<String, Error> {
        self.disks.lock().await.plug_named(&self.machine, file, false, true).await
    }

    /// Plugs an empty ext4 of `bytes` that goes with the machine; its file is made in `folder`. Returns its serial.
    ///
    /// # Errors
    /// When the disk can't be made or plugged.
    pub async fn plug_scratch(&self, scratch: Scratch) -> Result<String, Error> {
        let mut disks = self.disks.lock().await;
        let file = scratch.create().await?;
        disks.plug_named(&self.machine, file, false, true).await
    }

    /// Takes a disk out that the guest does not use any more.
    pub async fn unplug_disk(&self, serial: &str) {
        self.disks.lock().await.unplug_named(&self.machine, serial).await;
    }

    /// Plugs a network interface.
    ///
    /// # Errors
    /// When it can't be plugged.
    pub async fn plug_tap(&self, tap: Tap) -> Result<(), Error> {
        self.machine.plug_tap(tap).await
    }

    /// Offers the guest this much memory in total (bytes, a multiple of 2 MiB) and this many processors, and waits until
    /// it uses what was added.
    ///
    /// # Errors
    /// When it is less than at boot or more than the machine's maximum, or the guest does not take it up.
    pub async fn resize(&self, memory_bytes: u64, cpus: u32) -> Result<(), Error> {
        self.machine.resize(memory_bytes, cpus).await?;
        self.while_alive(self.agent.grow(cpus, memory_bytes)).await?;
        Ok(())
    }

    /// Offers the guest less memory in total (bytes, a multiple of 2 MiB); it gives back what it can in its own time.
    ///
    /// # Errors
    /// When it is less than at boot.
    pub async fn shrink(&self, memory_bytes: u64) -> Result<(), Error> {
        self.machine.resize(memory_bytes, 0).await
    }

    /// Plugs a container's disks, stacks its root filesystem and prepares its process, which waits for
    /// [`Sandbox::start`].
    ///
    /// # Errors
    /// When the disks can't be made or plugged, or the agent refuses; nothing is left of the container then.
    /// [`Error::is_not_found`] and [`Error::is_not_executable`] tell about the program.
    pub async fn create(&self, container: Container, io: Io) -> Result<Process, Error> {
        let Container { id, root, spec, user, pid_namespace, pid_container, block_devices } = container;
        let spec =
            serde_json::to_vec(&spec).map_err(|error| Error::Spec(oci_spec::OciSpecError::SerDe(error)))?;
        // The streams are opened while the disks are plugged.
        let (rootfs, attached) = tokio::join!(
            async { self.disks.lock().await.plug(&self.machine, &id, root).await },
            self.while_alive(Attached::open(&self.agent, io)),
        );
        let made = async {
            let (rootfs, attached) = (rootfs?, attached?);
            self.reached(Step::Devices);
            let stdio = attached.stdio;
            let new = NewContainer {
                id: id.clone(),
                rootfs,
                spec,
                user,
                stdio,
                pid_namespace,
                pid_container,
                block_devices,
            };
            self.while_alive(self.agent.create_container(new)).await?;
            self.reached(Step::Rootfs);
            attached.started(self.agent.clone(), id.clone(), String::new())
        };
        let made = made.await;
        match made {
            Ok(process) => {
                self.used().containers.insert(id);
                Ok(process)
            }
            Err(error) => {
                self.disks.lock().await.unplug(&self.machine, &id).await;
                Err(error)
            }
        }
    }

    /// Runs the process of a created container.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        self.while_alive(self.agent.start_container(id)).await?;
        self.reached(Step::Process);
        Ok(())
    }

    /// Creates a container and starts its process.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    pub async fn run(&self, container: Container, io: Io) -> Result<Process, Error> {
        let id = container.id.clone();
        let process = self.create(container, io).await?;
        self.start(&id).await?;
        Ok(process)
    }

    /// Ends what is left of a container and takes its disks out.
    ///
    /// # Errors
    /// When the agent refuses; the disks then stay.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        self.while_alive(self.agent.delete_container(id)).await?;
        self.used().containers.remove(id);
        self.disks.lock().await.unplug(&self.machine, id).await;
        Ok(())
    }

    /// Resolves when the machine or a helper it can't do without has ended, with one line saying why.
    pub async fn ended(&self) -> String {
        self.machine.ended().await
    }

    /// Ends the machine: what containers wrote to shared folders is written back first, if the guest still answers.
    pub async fn stop(&self) {
        let Used { shares, containers } = std::mem::take(&mut *self.used());
        if !shares.is_empty() {
            let flush = async {
                for id in &containers {
                    self.agent.delete_container(id).await?;
                }
                for tag in &shares {
                    self.agent.unmount_share(tag).await?;
                }
                Ok::<(), Error>(())
            };
            match tokio::time::timeout(FLUSH, self.while_alive(flush)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the guest may not have written everything to shared folders")
                }
                Err(_) => tracing::warn!(
                    "the guest did not finish writing to shared folders within {} s",
                    FLUSH.as_secs()
                ),
            }
        }
        self.machine.kill().await;
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a step of the start, when the caller has done it.
    pub fn reached(&self, step: Step) {
        self.timings.lock().unwrap_or_else(PoisonError::into_inner).reached(step);
    }

    /// Ends the machine at once.
    pub async fn kill(&self) {
        self.machine.kill().await;
    }

    /// A call that is pointless once the machine has ended: whichever comes first.
    pub async fn while_alive<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::pin!(call);
        tokio::select! {
            biased;
            result = &mut call => match result {
                // The connection breaks an instant before the machine's end is known; its reason says more.
                Err(error @ Error::Call { code: tonic::Code::Unavailable | tonic::Code::Unknown, .. }) => {
                    match tokio::time::timeout(Duration::from_millis(500), self.machine.ended()).await {
                        Ok(reason) => Err(Error::Ended(reason)),
                        Err(_) => Err(error),
                    }
                }
                result => result,
            },
            reason = self.machine.ended() => Err(Error::Ended(reason)),
        }
    }
}
