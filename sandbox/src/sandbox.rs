//! One running microVM and what is plugged into it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use cloister_image::Digest;
use cloister_protocol::{limits, v1};
use oci_spec::runtime::Spec;

use crate::agent::{Agent, Guest, NewContainer};
use crate::dial::Dialer;
use crate::error::Error;
use crate::machine::{Machine, MachineConfig};
use crate::process::{Attached, Io, Process};
use crate::timings::{Step, Timings};

/// How long the end of a sandbox waits for the guest to write back what belongs to the host's folders.
const FLUSH: Duration = Duration::from_secs(10);

/// A folder of the host to show in the guest.
#[derive(Debug)]
pub struct Share {
    /// `[a-z0-9-]`, at most 36 bytes, unique in the sandbox.
    pub tag: String,
    /// The folder, without symbolic links in its path.
    pub path: PathBuf,
    /// Whether the guest can't write.
    pub read_only: bool,
}

/// One layer of an image.
#[derive(Debug)]
pub struct Layer {
    /// Digest of the layer's tar; names its partition.
    pub diff_id: Digest,
    /// Its EROFS file, open for reading.
    pub file: File,
}

/// A container to make.
#[derive(Debug)]
pub struct Container {
    /// `[A-Za-z0-9_.-]`, at most 128 bytes.
    pub id: String,
    /// The image's layers, lowest first.
    pub layers: Vec<Layer>,
    /// Size of the writable part in bytes and the folder where its file is made (and unlinked at once); `None`
    /// keeps what is written in the guest's memory.
    pub scratch: Option<(u64, PathBuf)>,
    /// What to run and how; `root.path` is ignored.
    pub spec: Spec,
    /// docker's `USER`, resolved by the guest with the image's own files; empty for the user of `spec`.
    pub user: String,
}

/// A microVM whose agent has answered.
pub struct Sandbox {
    machine: Machine,
    agent: Agent,
    guest: Guest,
    timings: Timings,
    shares: Vec<String>,
    containers: Vec<String>,
    disks: u32,
}

impl Sandbox {
    /// Starts a generic virtual machine and greets its agent.
    ///
    /// # Errors
    /// When the machine does not start, ends again, or its agent does not answer in time or is of another release.
    pub async fn boot(config: &MachineConfig) -> Result<Self, Error> {
        let mut timings = Timings::start();
        let machine = Machine::start(config).await?;
        timings.reached(Step::Vmm);
        let dialer = machine.dialer();
        let (agent, guest) = tokio::select! {
            answer = Agent::connect(dialer, config.boot_deadline) => answer?,
            reason = machine.ended() => return Err(Error::Ended(reason)),
        };
        timings.reached(Step::Agent);
        if config.privileged && !guest.privileged {
            return Err(Error::Reply {
                call: "say hello to the guest agent",
                why: "the guest does not know that it may run privileged containers",
            });
        }
        Ok(Self { machine, agent, guest, timings, shares: Vec::new(), containers: Vec::new(), disks: 0 })
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
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Shows a folder of the host in the guest and returns where it is there.
    ///
    /// # Errors
    /// When the share's daemon does not start or the guest can't mount it.
    pub async fn share(&mut self, share: &Share) -> Result<String, Error> {
        self.machine.plug_share(share).await?;
        let path = self.while_alive(self.agent.mount_share(&share.tag, share.read_only)).await?;
        self.shares.push(share.tag.clone());
        Ok(path)
    }

    /// Plugs a container's disks, stacks its root filesystem and starts its process.
    ///
    /// # Errors
    /// When the disks can't be made or plugged, or the agent refuses; [`Error::is_not_found`] and
    /// [`Error::is_not_executable`] tell about the program.
    pub async fn run(&mut self, container: Container, io: Io) -> Result<Process, Error> {
        let count = u32::try_from(container.layers.len()).ok().filter(|count| *count <= limits::LAYERS);
        let layers = count.ok_or(Error::Layers(container.layers.len()))?;
        let number = self.disks;
        self.disks += 1;
        let mut rootfs = v1::Rootfs { layers, ..v1::Rootfs::default() };
        if layers > 0 {
            rootfs.image_serial = format!("image{number}");
            self.machine.plug_image(&rootfs.image_serial, &container.layers).await?;
        }
        if let Some((bytes, folder)) = container.scratch {
            rootfs.scratch_serial = format!("scratch{number}");
            let file = scratch(bytes, folder).await?;
            self.machine.plug_scratch(&rootfs.scratch_serial, file).await?;
        }
        self.timings.reached(Step::Devices);

        let spec = serde_json::to_vec(&container.spec)
            .map_err(|error| Error::Spec(oci_spec::OciSpecError::SerDe(error)))?;
        let attached = self.while_alive(Attached::open(&self.agent, io)).await?;
        let new = NewContainer {
            id: container.id.clone(),
            rootfs,
            spec,
            user: container.user,
            stdio: attached.stdio,
            ..NewContainer::default()
        };
        self.while_alive(self.agent.create_container(new)).await?;
        self.containers.push(container.id.clone());
        self.timings.reached(Step::Rootfs);
        self.while_alive(self.agent.start_container(&container.id)).await?;
        self.timings.reached(Step::Process);
        attached.started(self.agent.clone(), container.id, String::new())
    }

    /// Resolves when the machine or a helper it can't do without has ended, with one line saying why.
    pub async fn ended(&self) -> String {
        self.machine.ended().await
    }

    /// Ends the machine: what containers wrote to shared folders is written back first, if the guest still answers.
    pub async fn stop(self) {
        if !self.shares.is_empty() {
            let flush = async {
                for id in &self.containers {
                    self.agent.delete_container(id).await?;
                }
                for tag in &self.shares {
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

    /// Ends the machine at once.
    pub async fn kill(self) {
        self.machine.kill().await;
    }

    /// A call that is pointless once the machine has ended: whichever comes first.
    async fn while_alive<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
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

/// Makes the empty writable disk; no name is left of it.
async fn scratch(bytes: u64, folder: PathBuf) -> Result<OwnedFd, Error> {
    let made = tokio::task::spawn_blocking(move || crate::machine::make_scratch(bytes, &folder));
    made.await.map_err(|cause| Error::System {
        what: "make the scratch disk",
        cause: std::io::Error::other(cause),
    })?
}
