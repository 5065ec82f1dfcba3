//! A builder's container: making it, looking after it, and its orderly end.

use std::sync::Arc;
use std::time::Duration;

use cloister_builder::pod::{CACHE_BYTES, Facts};
use cloister_builder::{CacheDisk, Caches, Names, Tail};
use cloister_image::ImageConfig;
use cloister_sandbox::{Io, PidNamespace, Root, Scratch, spec};
use oci_spec::runtime::{Mount, Spec};
use tracing::Instrument;

use super::{Container, Machine, Pod};
use crate::builder::{Ask, Desk, Handle, Keeper, Mounts, Wish};
use crate::failure::{Failure, Result};
use crate::metrics::Ending;

/// How long an orderly end may take, and a little more.
const END: Duration = Duration::from_secs(10);
/// Folder of the cache disks, beside that of disks which go with their machine.
const CACHES: &str = "caches";

/// The disk with buildkitd's state.
struct StateDisk {
    serial: String,
    bytes: u64,
    cache: Option<CacheDisk>,
}

impl Pod {
    /// Makes buildkitd's container in the place of what the specification says, apart from its environment and limits.
    pub(super) async fn make_builder(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        wish: &Wish,
        container: &Arc<Container>,
        host: &Spec,
        mounts: Vec<Mount>,
        root: Root,
    ) -> Result<()> {
        if self.builder.get().is_some() {
            return Err(Failure::Invalid("a builder's pod has one container, once".to_owned()));
        }
        let mounts = Mounts::split(mounts, wish.network)?;
        let prepared = machine.volumes.prepare(&container.id, &mounts.guest).await?;
        let disk = self.state_disk(machine, wish).await?;
        let serial = disk.serial.clone();
        let made =
            self.make_on(machine, container, host, mounts, prepared.mounts, root, disk, wish.network).await;
        if made.is_err() {
            let _ = machine.sandbox.delete(&container.id).await;
            let _ = cloister_builder::unmount_state(machine.sandbox.agent()).await;
            machine.sandbox.unplug_disk(&serial).await;
        }
        made
    }

    #[allow(clippy::too_many_arguments, reason = "one container's parts")]
    async fn make_on(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        container: &Arc<Container>,
        host: &Spec,
        mounts: Mounts,
        binds: Vec<Mount>,
        root: Root,
        disk: StateDisk,
        network: bool,
    ) -> Result<()> {
        let id = &container.id;
        let memory_bytes = container.limits().memory.unwrap_or_else(|| self.config.default_memory());
        let state = cloister_builder::mount_state(&machine.sandbox, disk.serial.clone()).await;
        let env = host.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
        let image = ImageConfig { env, ..ImageConfig::default() };
        let wishes = cloister_builder::wishes(memory_bytes, state.map_err(Failure::other)?);
        let mut spec = spec::build(&image, &wishes)?;
        spec.set_mounts(Some(spec.mounts().iter().flatten().cloned().chain(binds).collect()));
        let guest = cloister_sandbox::Container {
            id: id.clone(),
            root,
            spec,
            user: String::new(),
            pid_namespace: PidNamespace::Own,
            pid_container: String::new(),
            block_devices: Vec::new(),
        };
        // Standard output and input are the driver's; buildkitd's own words are for messages.
        let Io { stdin, stdout, .. } = container.init.open().await?;
        let tail = Tail::default();
        let io = Io { stderr: Some(Box::new(tail.clone())), ..Io::default() };
        let process = machine.sandbox.create(guest, io).await?;
        let names = if network { Names::Container } else { Names::None };
        let configured = cloister_builder::configure(machine.sandbox.agent(), id, disk.bytes, &names);
        configured.await.map_err(Failure::other)?;

        let (handle, keeper) = Handle::new(id.clone());
        let desk = Desk::open(&self.folder, handle.clone(), stdout, stdin)?;
        let facts = Facts {
            pod: machine.setup.name.clone().unwrap_or_default(),
            container: id.clone(),
            memory_bytes,
            disk_bytes: disk.bytes,
            warm: disk.cache.as_ref().is_some_and(CacheDisk::is_warm),
            mounts: mounts.host,
            dialer: machine.sandbox.dialer(),
        };
        facts.write(&self.folder).map_err(|error| Failure::Other(format!("cannot write facts: {error}")))?;
        if self.builder.set(handle).is_err() {
            return Err(Failure::Invalid("a builder's pod has one container, once".to_owned()));
        }
        let care = Care { container: Arc::clone(container), process, tail, cache: disk.cache, desk, keeper };
        tokio::spawn(Arc::clone(self).look_after(Arc::clone(machine), care).in_current_span());
        Ok(())
    }

    /// Plugs the disk of buildkitd's state: one of the namespace's, or one that goes with the machine.
    async fn state_disk(&self, machine: &Machine, wish: &Wish) -> Result<StateDisk> {
        let bytes = wish.disk_bytes.unwrap_or_else(|| self.config.scratch());
        let disks = &self.config.disks;
        let Some(key) = wish.cache.clone() else {
            let serial = machine.sandbox.plug_scratch(Scratch::nameless(bytes, disks.clone())).await?;
            return Ok(StateDisk { serial, bytes, cache: None });
        };
        let caches = Caches::new(disks.with_file_name(CACHES), bytes, self.config.caches);
        let taken = tokio::task::spawn_blocking(move || caches.take(&key)).await.map_err(Failure::other)?;
        let cache = taken.map_err(|error| match error {
            cloister_builder::Error::CacheTooLarge { .. } => {
                Failure::Invalid(format!("{CACHE_BYTES}: {error}"))
            }
            error => Failure::other(error),
        })?;
        let serial = machine.sandbox.plug_temporary(cache.file().map_err(Failure::other)?).await?;
        Ok(StateDisk { serial, bytes: cache.bytes(), cache: Some(cache) })
    }

    /// Stays with a builder until it is asked to end, or ends.
    async fn look_after(self: Arc<Self>, machine: Arc<Machine>, care: Care) {
        let Care { container, process, tail, cache, desk, mut keeper } = care;
        let agent = machine.sandbox.agent();
        let (ask, ending, reason) = tokio::select! {
            ask = keeper.asked() => {
                (ask, if ask.code == 0 { Ending::Completed } else { Ending::Error }, None)
            }
            exit = self.exit_of(&machine, &process) => match exit {
                Some(exit) => {
                    if exit.oom_killed {
                        self.events.out_of_memory(&container.id);
                    }
                    // Its last words are on their way.
                    process.drain().await;
                    let reason = format!("buildkitd ended with code {}; its log ends with: {}", exit.code, tail.text());
                    let ending = if exit.oom_killed { Ending::OutOfMemory } else { Ending::Error };
                    (Ask { code: exit.code.max(1), kind: false }, ending, Some(reason))
                }
                // The machine is gone, as everyone was told; the disk's content goes too.
                None => {
                    container.init.close();
                    drop((desk, cache));
                    return keeper.done();
                }
            },
        };
        let written = match &cache {
            Some(_) => {
                let ended = async { drop(agent.wait(&container.id, "").await) };
                cloister_builder::write_back(&machine.sandbox, &container.id, ask.kind, ended).await
            }
            None => Ok(()),
        };
        // Before the disk is anyone else's: what runs in the guest could still write to it.
        let ours = self.put_away("the build has ended").await;
        match (written, cache) {
            (Ok(()), Some(disk)) if ours => {
                let kept = tokio::task::spawn_blocking(move || disk.keep()).await;
                if let Err(error) = kept.map_err(Failure::other).and_then(|kept| kept.map_err(Failure::other))
                {
                    tracing::warn!(%error, "the build cache is lost");
                }
            }
            (Err(error), Some(_)) => tracing::warn!(%error, "the build cache is lost"),
            _ => {}
        }
        let _order = container.init.order.lock().await;
        self.ended(&container.init, ask.code.into(), ending, reason.as_deref());
        container.init.close();
        drop(desk);
        keeper.done();
    }

    /// Asks a builder to end, if the container is one and the signal ends what gets it.
    pub(super) fn ends_builder(&self, id: &str, signal: i32) -> bool {
        let Some(handle) = self.builder.get().filter(|handle| handle.container == id) else { return false };
        let ends = matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGKILL);
        if ends {
            let code = u8::try_from(128 + signal).unwrap_or(u8::MAX);
            handle.ask(Ask { code, kind: signal != libc::SIGKILL });
        }
        ends
    }

    /// Ends the pod's builder, if it has one, and waits for that.
    pub(super) async fn end_builder(&self) {
        if let Some(handle) = self.builder.get() {
            handle.ask(Ask { code: 137, kind: true });
            if tokio::time::timeout(END, handle.done()).await.is_err() {
                tracing::warn!("the builder does not end in order");
            }
        }
    }

    /// Ends the machine once it has run for so long.
    pub(super) async fn watch_deadline(self: Arc<Self>, machine: Arc<Machine>, deadline: Duration) {
        tokio::select! {
            () = tokio::time::sleep(deadline) => {}
            _ = self.gone() => return,
        }
        self.lost(&format!(
            "the build's machine has run for {} s, which is its deadline",
            deadline.as_secs()
        ))
        .await;
        machine.sandbox.kill().await;
    }
}

/// A builder that runs, and what belongs to it.
struct Care {
    container: Arc<Container>,
    process: cloister_sandbox::Process,
    tail: Tail,
    cache: Option<CacheDisk>,
    desk: Desk,
    keeper: Keeper,
}
