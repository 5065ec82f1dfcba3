//! The pod's machine: booting it, what belongs to it, and its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloister_network::{Forwarder, Interface, Netns};
use cloister_protocol::ports;
use cloister_sandbox::{Booting, MachineConfig, Sandbox, Step};
use tracing::Instrument;

use super::network::{self, Mirrored};
use super::{Pod, Setup};
use crate::builder::Wish;
use crate::failure::{Failure, Result};
use crate::metrics;
use crate::state::{Phase, ProcessId};
use crate::volumes::{self, Volumes};
use crate::{cgroup, slots};

/// A booted machine and what the pod has in it.
pub struct Machine {
    /// The guest.
    pub sandbox: Arc<Sandbox>,
    /// Its volumes.
    pub volumes: Volumes,
    /// Bytes and processors that the guest has been offered.
    pub size: tokio::sync::Mutex<(u64, u32)>,
    /// Limits of the whole pod, where they were given.
    pub setup: Setup,
    /// What it is to be as a builder, if it is one.
    pub builder: Option<Wish>,
    /// Ends with the machine.
    forwarder: Mutex<Option<Forwarder>>,
    /// Its namespace and what is mirrored there, to be counted.
    pub network: Option<(Netns, Vec<Interface>)>,
}

/// How far the machine has come.
#[derive(Clone)]
pub enum Stage {
    /// Nobody asked for one.
    Absent,
    /// It boots.
    Booting,
    /// It serves.
    Running(Arc<Machine>),
    /// It has ended, or never came up: why.
    Gone(String),
}

impl Pod {
    /// Starts the machine; returns once its monitor runs. [`Pod::machine`] waits for the guest.
    ///
    /// # Errors
    /// When the pod can't be in a machine, or the monitor does not start.
    pub async fn boot(self: &Arc<Self>, setup: Setup) -> Result<u32> {
        let first = self.stage.send_if_modified(|stage| {
            let absent = matches!(stage, Stage::Absent);
            if absent {
                *stage = Stage::Booting;
            }
            absent
        });
        if !first {
            return Err(Failure::Exists(format!("the pod {} has a machine already", self.id)));
        }
        self.by_service.store(setup.files.is_some(), std::sync::atomic::Ordering::Relaxed);
        match self.launch(setup).await {
            Ok(pid) => Ok(pid),
            Err(failure) => {
                self.lost(&failure.to_string()).await;
                Err(failure)
            }
        }
    }

    async fn launch(self: &Arc<Self>, setup: Setup) -> Result<u32> {
        let builder = Wish::of(&setup)?;
        let netns = setup.netns.as_deref().map(Netns::open).transpose().map_err(|error| match error {
            cloister_network::Error::HostNetwork(_) => super::Refused::Network.into(),
            other => Failure::other(other),
        })?;
        let mut config = self.machine_config(&setup)?;
        config.privileged |= builder.is_some();
        // The monitor is in the namespace all the same, and can reach nothing outside the machine.
        let netns = netns.filter(|_| builder.as_ref().is_none_or(|wish| wish.network));
        if let Some(files) = &setup.files {
            files.write(&self.folder)?;
        }
        let cgroups = cgroup::folders(&setup.cgroup)?;
        self.update(|state| {
            state.phase = Phase::Starting;
            state.name.clone_from(&setup.name);
            state.uid = config.host.user.map(|user| user.uid);
            state.netns.clone_from(&setup.netns);
            state.cgroups.clone_from(&cgroups);
        })?;
        cgroup::join(&cgroups)?;
        let mirrored = async {
            let Some(netns) = netns else { return Ok(None) };
            let plan = |taps| self.update(|state| state.taps = taps);
            network::mirror(netns, plan).await.map(Some)
        };
        let (mut stage, places) = (self.stage.subscribe(), self.config.booting());
        let slot = tokio::select! {
            slot = slots::take(&places, self.config.boots()) => slot,
            // Nothing is started for a pod that was stopped meanwhile.
            _ = stage.wait_for(|stage| !matches!(stage, Stage::Booting)) => {
                return Err(Failure::Other("the pod was stopped before its machine booted".to_owned()));
            }
        };
        let (booting, mirrored) = tokio::join!(Booting::start(&config), mirrored);
        let (booting, mirrored) = (booting?, mirrored?);
        let pid = booting.pid();
        self.update(|state| state.vmm = ProcessId::of(pid))?;
        self.pid.store(pid, std::sync::atomic::Ordering::Relaxed);
        let size = (config.memory_bytes, config.cpus);
        let pod = Arc::clone(self);
        tokio::spawn(
            async move {
                let risen = pod.rise(booting, mirrored, setup, builder, size).await;
                drop(slot);
                match risen {
                    Ok(()) => tracing::info!("the machine is up"),
                    Err(failure) => {
                        tracing::error!(%failure, "the machine does not come up");
                        pod.lost(&failure.to_string()).await;
                    }
                }
            }
            .in_current_span(),
        );
        Ok(pid)
    }

    fn machine_config(&self, setup: &Setup) -> Result<MachineConfig> {
        let config = &self.config;
        let memory_bytes = config.memory(setup.limits.memory);
        Ok(MachineConfig {
            host: config.host()?,
            folder: self.folder.clone(),
            kernel: config.kernel()?,
            memory_bytes,
            max_memory_bytes: config.max_memory().max(memory_bytes),
            cpus: config.cpus(setup.limits.cpu),
            max_cpus: config.max_cpus(),
            privileged: setup.privileged,
            netns: setup.netns.clone(),
            egress: None,
            accel: config.accel(),
            boot_deadline: Duration::from_secs(config.boot_seconds),
        })
    }

    /// Follows a machine from its first instruction to the moment containers can run.
    async fn rise(
        self: &Arc<Self>,
        booting: Booting,
        mirrored: Option<Mirrored>,
        setup: Setup,
        builder: Option<Wish>,
        size: (u64, u32),
    ) -> Result<()> {
        let (interfaces, taps, netns) = match mirrored {
            Some(mirrored) => (mirrored.interfaces, mirrored.taps, Some(mirrored.netns)),
            None => (Vec::new(), Vec::new(), None),
        };
        for tap in taps {
            booting.plug_tap(tap).await?;
        }
        let sandbox = Arc::new(booting.ready().await?);
        let agent = sandbox.agent().clone();
        let pod_wide = agent.set_up_pod(&setup.hostname, setup.sysctls.clone(), 0);
        let request = network::request(&interfaces);
        let connected = async {
            if request.interfaces.is_empty() { Ok(()) } else { agent.configure_network(request).await }
        };
        let (named, connected) = tokio::join!(sandbox.while_alive(pod_wide), sandbox.while_alive(connected));
        named?;
        connected?;
        sandbox.reached(Step::Network);
        let forwarder = match &netns {
            Some(netns) => self.forward(netns, &sandbox).await,
            None => None,
        };
        let disks = self.config.disks.clone();
        std::fs::create_dir_all(&disks)
            .map_err(|error| Failure::Other(format!("cannot make {}: {error}", disks.display())))?;
        let volumes = Volumes::new(
            Arc::clone(&sandbox),
            self.folder.clone(),
            disks,
            self.config.empty_dir(),
            volumes::sizes(&setup.annotations),
        );
        let machine = Arc::new(Machine {
            sandbox,
            volumes,
            size: tokio::sync::Mutex::new(size),
            setup,
            builder,
            forwarder: Mutex::new(forwarder),
            network: netns.map(|netns| (netns, interfaces)),
        });
        self.update(|state| state.phase = Phase::Running)?;
        let taken = self.stage.send_if_modified(|stage| {
            let booting = matches!(stage, Stage::Booting);
            if booting {
                *stage = Stage::Running(Arc::clone(&machine));
            }
            booting
        });
        if !taken {
            // The pod was stopped meanwhile.
            machine.sandbox.kill().await;
            return Ok(());
        }
        tokio::spawn(Arc::clone(self).watch(Arc::clone(&machine)).in_current_span());
        if let Some(deadline) = machine.builder.as_ref().and_then(|wish| wish.deadline) {
            let watch = Arc::clone(self).watch_deadline(Arc::clone(&machine), deadline);
            tokio::spawn(watch.in_current_span());
        }
        tokio::spawn(Arc::clone(self).watch_memory(machine).in_current_span());
        Ok(())
    }

    /// Port-forward is a convenience: a pod without it is better than none.
    async fn forward(&self, netns: &Netns, sandbox: &Sandbox) -> Option<Forwarder> {
        let dialer = sandbox.dialer();
        let dial = move || {
            let dialer = dialer.clone();
            async move { dialer.connect(ports::FORWARD).await }
        };
        match Forwarder::start(netns, dial).await {
            Ok(forwarder) => Some(forwarder),
            Err(error) => {
                tracing::warn!(%error, "port-forward does not work in this pod");
                None
            }
        }
    }

    /// Notices the end of the machine.
    async fn watch(self: Arc<Self>, machine: Arc<Machine>) {
        let reason = machine.sandbox.ended().await;
        self.lost(&format!("the microVM ended: {reason}")).await;
        // With a share's daemon gone the machine still runs, and holds the streams of its processes open.
        machine.sandbox.kill().await;
    }

    /// Passes out-of-memory kills on. The guest may say anything: only containers that exist count.
    async fn watch_memory(self: Arc<Self>, machine: Arc<Machine>) {
        let agent = machine.sandbox.agent();
        while let Ok(mut events) = agent.oom_events().await {
            while let Ok(Some(id)) = events.next().await {
                if self.container(&id).is_ok() {
                    self.events.out_of_memory(&id);
                }
            }
            if !matches!(*self.stage.borrow(), Stage::Running(_)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The machine, once it serves.
    ///
    /// # Errors
    /// When it does not come up or has ended.
    pub async fn machine(&self) -> Result<Arc<Machine>> {
        let mut stage = self.stage.subscribe();
        loop {
            match &*stage.borrow_and_update() {
                Stage::Running(machine) => return Ok(Arc::clone(machine)),
                Stage::Gone(reason) => return Err(Failure::Other(reason.clone())),
                Stage::Absent => {
                    return Err(Failure::Precondition(format!("the pod {} was not created", self.id)));
                }
                Stage::Booting => {}
            }
            stage.changed().await.map_err(Failure::other)?;
        }
    }

    /// Ends the machine as gently as its end allows. Every process of the pod has ended afterwards.
    pub async fn stop(&self) {
        let _one = self.stopping.lock().await;
        self.end_builder().await;
        let stage = self.stage.send_replace(Stage::Gone("the pod was stopped".to_owned()));
        match stage {
            Stage::Running(machine) => {
                self.part_from(&machine).await;
                machine.sandbox.stop().await;
            }
            Stage::Gone(reason) => {
                self.stage.send_replace(Stage::Gone(reason));
            }
            Stage::Absent | Stage::Booting => {}
        }
        self.end_all(137, None);
        // Before anyone hears of the end: the shim may be killed right after.
        let last_page = self.last_page.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(path) = last_page
            && let Err(error) = metrics::leave(&path, &self.counted)
        {
            tracing::warn!("{error:#}");
        }
    }

    async fn part_from(&self, machine: &Machine) {
        self.record_stopping();
        drop(machine.forwarder.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.counted.read(machine).await;
    }

    fn record_stopping(&self) {
        if let Err(error) = self.update(|state| state.phase = Phase::Stopping) {
            tracing::warn!("{error:#}");
        }
    }

    /// Ends the machine at once and tells nobody; false when that has happened already.
    pub(super) async fn put_away(&self, reason: &str) -> bool {
        let mut running = None;
        self.stage.send_if_modified(|stage| match stage {
            Stage::Running(machine) => {
                running = Some(Arc::clone(machine));
                *stage = Stage::Gone(reason.to_owned());
                true
            }
            _ => false,
        });
        let Some(machine) = running else { return false };
        self.part_from(&machine).await;
        machine.sandbox.kill().await;
        true
    }

    /// The machine is gone without having been asked.
    pub(super) async fn lost(&self, reason: &str) {
        let mut booting = true;
        let first = self.stage.send_if_modified(|stage| {
            let first = !matches!(stage, Stage::Gone(_));
            booting = !matches!(stage, Stage::Running(_));
            if first {
                *stage = Stage::Gone(reason.to_owned());
            }
            first
        });
        if first {
            tracing::error!(reason, "the pod has lost its machine");
            self.counted.lost(booting);
            // First: containerd may call this program's `delete` as soon as it hears of the end.
            self.record_stopping();
            self.end_all(255, Some(reason));
        }
    }
}
