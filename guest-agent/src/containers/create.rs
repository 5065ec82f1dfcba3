//! Making and starting a container.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_protocol::v1::{CreateContainerRequest, PidNamespace};
use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{Uid, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::process::{Entry, Process};
use super::stdio::Claimed;
use super::{Container, Containers, KILL, Slot, remove_folder};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result, lock};
use crate::inroot::Root;
use crate::runtime::{Helper, Job, Report, STATE, TERMINAL};
use crate::spec::Pids;
use crate::{rootfs, spec, users};

/// How long making a container may take, its disks being there.
const CREATE: Duration = Duration::from_secs(60);
/// How long an init process may take from "start" to its program.
const START: Duration = Duration::from_secs(30);

impl Containers {
    /// Makes a container; gives the number of its init process. Blocks.
    ///
    /// # Errors
    /// When anything fails; nothing is left then.
    pub fn create(&self, request: &CreateContainerRequest) -> Result<u32> {
        let id = &request.container_id;
        self.reserve(id)?;
        let made = self.make(request);
        let mut table = lock(&self.table);
        match made {
            Ok((container, init)) => {
                table.insert(id.clone(), Slot::Ready(container));
                Ok(init.pid)
            }
            Err(error) => {
                table.remove(id);
                Err(error)
            }
        }
    }

    fn make(&self, request: &CreateContainerRequest) -> Result<(Arc<Container>, Arc<Process>)> {
        let claimed = Claimed::take(&self.streams, request.stdio.as_ref())?;
        let pids = self.pids_of(request)?;
        let parsed = spec::parse(&request.spec)?;
        let disks =
            request.rootfs.as_ref().ok_or_else(|| Error::invalid("the container has no root file system"))?;
        let folder = self.folder()?;
        let made = rootfs::mount(&folder, disks).and_then(|rootfs| {
            let filled = self.fill(request, parsed, &folder, &rootfs.root, &pids, claimed);
            if filled.is_err() {
                take_apart(&request.container_id, &rootfs);
            }
            filled.map(|(spec, init)| (rootfs, spec, init))
        });
        let (rootfs, spec, init) = made.inspect_err(|_| remove_folder(&folder))?;
        let container = Arc::new(Container {
            id: request.container_id.clone(),
            folder,
            rootfs,
            cgroup: Cgroup::of(&request.container_id),
            spec,
            processes: Mutex::new(HashMap::from([(String::new(), Entry::Ready(Arc::clone(&init)))])),
        });
        Container::follow(&init);
        if !spec::has_own_pids(&container.spec) {
            Container::end_with_init(&container, &init);
        }
        self.oom.watch(&container.id, &container.cgroup, init.exits());
        Ok((container, init))
    }

    fn pids_of(&self, request: &CreateContainerRequest) -> Result<Pids> {
        match PidNamespace::try_from(request.pid_namespace) {
            Ok(PidNamespace::Own) => Ok(Pids::Spec),
            Ok(PidNamespace::Pod) => self.pids.path(&self.reaper).map(Pids::Shared),
            Ok(PidNamespace::Guest) => Ok(Pids::Guest),
            Ok(PidNamespace::Container) => {
                let target = &request.pid_container;
                let init = self.get(target)?.process("")?;
                if init.exit().is_some() {
                    let ended = format!("container {target} has ended: there are no process ids to share");
                    return Err(Error::state(ended));
                }
                Ok(Pids::Shared(format!("/proc/{}/ns/pid", init.pid).into()))
            }
            Err(_) => Err(Error::invalid(format!("PID namespace {} is none", request.pid_namespace))),
        }
    }

    /// Writes the bundle and makes the init process.
    fn fill(
        &self,
        request: &CreateContainerRequest,
        mut spec: Spec,
        folder: &Path,
        root: &Path,
        pids: &Pids,
        claimed: Claimed,
    ) -> Result<(Spec, Arc<Process>)> {
        let inside = Root::open(root)?;
        let named = (!request.user.is_empty()).then(|| users::resolve(&inside, &request.user)).transpose()?;
        let uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
        let home = named.as_ref().map_or_else(|| users::home(&inside, uid), |user| Ok(user.home.clone()))?;
        let fit = spec::Fit {
            id: &request.container_id,
            root,
            user: named.as_ref(),
            home: &home,
            privileged: self.privileged,
            pids,
            block_devices: &request.block_devices,
        };
        for node in spec::fit(&mut spec, &fit)? {
            node.make(&inside)?;
        }
        spec::resolve(&mut spec, &inside)?;
        // Until the container has its own mounts of them.
        let _staged = spec::stage(&mut spec, folder)?;
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_terminal(Some(claimed.terminal));
        inside.create_dir_all(process.cwd())?;
        let (uid, gid) = (process.user().uid(), process.user().gid());
        spec.set_process(Some(process));
        let config = folder.join("config.json");
        let json = serde_json::to_vec(&spec).context(|| "write the OCI spec".into())?;
        fs::write(&config, json).context(|| format!("write {}", config.display()))?;

        let spawning = self.reaper.spawning();
        if claimed.terminal {
            let socket = folder.join(TERMINAL);
            let listener = UnixListener::bind(&socket).context(|| format!("bind {}", socket.display()))?;
            let helper = Helper::spawn(Job::Create, folder, [None, None, None], CREATE)?;
            let pid = pid(&helper)?;
            let exit = spawning.adopt(pid);
            let master = Arc::new(terminal(&listener, uid)?);
            let streams = claimed.terminal(&master)?;
            Ok((spec, Process::new(pid, exit, streams, Some(master), Some(helper))))
        } else {
            let (streams, ends) = claimed.pipes(uid, gid)?;
            let helper = Helper::spawn(Job::Create, folder, ends, CREATE)?;
            let pid = pid(&helper).inspect_err(|_| streams.hang_up())?;
            let exit = spawning.adopt(pid);
            Ok((spec, Process::new(pid, exit, streams, None, Some(helper))))
        }
    }

    /// Lets the init process run its program; returns when it does. Blocks.
    ///
    /// # Errors
    /// When it was started before, or its program cannot be executed.
    pub fn start(&self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        let init = container.process("")?;
        let waiting = lock(&init.waiting).take();
        let mut helper =
            waiting.ok_or_else(|| Error::state(format!("container {id} was started already")))?;
        helper.extend(START);
        let socket = container.folder.join(STATE).join("notify.sock");
        UnixStream::connect(&socket)
            .and_then(|mut stream| std::io::Write::write_all(&mut stream, b"start"))
            .context(|| format!("start container {id}"))?;
        while helper.next()?.is_some() {}
        Ok(())
    }
}

/// The number of the process a helper made.
fn pid(helper: &Helper) -> Result<u32> {
    match helper.next()? {
        Some((Report::Pid(pid), _)) => Ok(pid),
        _ => Err(Error::state("the helper ended without a process")),
    }
}

/// The master side that libcontainer sent; the other side is made the user's own.
fn terminal(listener: &UnixListener, uid: u32) -> Result<OwnedFd> {
    let what = || "take the container's terminal".into();
    // The process exists, so libcontainer has connected and sent it.
    listener.set_nonblocking(true).context(what)?;
    let (stream, _) = listener.accept().context(what)?;
    stream.set_read_timeout(Some(START)).context(what)?;
    let (_, master) = crate::runtime::receive(&stream.into()).context(what)?.unwrap_or_default();
    let master = master.ok_or_else(|| Error::state("the container sent no terminal"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).context(what)?;
    fchown(&slave, Some(Uid::from_raw(uid)), None).context(what)?;
    Ok(master)
}

/// Undoes a container that was never ready.
fn take_apart(id: &str, rootfs: &rootfs::Mounted) {
    let cgroup = Cgroup::of(id);
    for result in [cgroup.kill(KILL), cgroup.remove(), rootfs.unmount()] {
        if let Err(error) = result {
            tracing::warn!(%error, container = id, "left over from a container that could not be created");
        }
    }
}

impl Container {
    /// Tells the pumps of a process when it ends.
    pub fn follow(process: &Arc<Process>) {
        let process = Arc::clone(process);
        tokio::spawn(async move {
            if process.wait().await.is_ok() {
                process.ended();
            }
        });
    }

    /// Without a PID namespace of its own, a container's other processes outlive its init process unless somebody ends
    /// them: nobody could ask for them any more.
    fn end_with_init(container: &Arc<Self>, init: &Arc<Process>) {
        let (cgroup, id, init) = (container.cgroup.clone(), container.id.clone(), Arc::clone(init));
        tokio::spawn(async move {
            if init.wait().await.is_ok() {
                let killed = tokio::task::spawn_blocking(move || cgroup.kill(KILL)).await;
                if let Ok(Err(error)) = killed {
                    tracing::warn!(%error, container = id, "processes outlive their container's first one");
                }
            }
        });
    }
}
