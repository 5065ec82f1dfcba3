//! One more process in a running container.

use std::collections::hash_map::Entry as MapEntry;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_protocol::{limits, v1::ExecRequest};

use super::process::{Entry, Process};
use super::stdio::Claimed;
use super::{Container, Containers};
use crate::cgroup;
use crate::error::{Context, Error, Kind, Result, lock};
use crate::runtime::{Helper, Job, JoinRequest, Report, open_process};
use crate::{spec, users};

/// How long a process may take to run its program.
const EXEC: Duration = Duration::from_secs(30);

impl Containers {
    /// Starts a process; gives its number once its program runs. Blocks.
    ///
    /// # Errors
    /// [`Kind::NotFound`] and [`Kind::Denied`] for the program, [`Kind::State`] when the container does not run.
    pub fn exec(&self, request: &ExecRequest) -> Result<u32> {
        let container = self.get(&request.container_id)?;
        let claimed = Claimed::take(&self.streams, request.stdio.as_ref())?;
        container.reserve(&request.exec_id)?;
        let started = self.join(&container, request, claimed);
        let mut processes = lock(&container.processes);
        match started {
            Ok(process) => {
                Container::follow(&process);
                let pid = process.pid;
                processes.insert(request.exec_id.clone(), Entry::Ready(process));
                Ok(pid)
            }
            Err(error) => {
                processes.remove(&request.exec_id);
                Err(error)
            }
        }
    }

    fn join(&self, container: &Container, request: &ExecRequest, claimed: Claimed) -> Result<Arc<Process>> {
        let init = container.process("")?;
        let ended = || Error::state(format!("container {} is not running", container.id));
        // Open first, then look: while the process has not ended by now, the descriptor is its own.
        let target = open_process(init.pid).map_err(|_| ended())?;
        if init.exit().is_some() || lock(&init.waiting).is_some() {
            return Err(ended());
        }
        if container.cgroup.is_paused() {
            return Err(Error::state(format!("container {} is paused", container.id)));
        }
        let (request, file) = self.write(container, init.pid, request, claimed.terminal)?;
        let result = self.run(&request, &file, &target, claimed);
        let _ = fs::remove_file(&file);
        result
    }

    /// Writes the helper's request.
    fn write(
        &self,
        container: &Container,
        init: u32,
        request: &ExecRequest,
        terminal: bool,
    ) -> Result<(JoinRequest, PathBuf)> {
        let root = container.root()?;
        let mut process = spec::parse_process(&request.process)?;
        let named = (!request.user.is_empty()).then(|| users::resolve(&root, &request.user)).transpose()?;
        let home = match &named {
            Some(user) => user.home.clone(),
            None => users::home(&root, process.user().uid())?,
        };
        spec::fit_process(&mut process, named.as_ref(), &home, self.privileged)?;
        process.set_terminal(Some(terminal));
        let linux = container.spec.linux().clone().unwrap_or_default();
        let join = JoinRequest {
            process,
            seccomp: linux.seccomp().clone(),
            namespaces: spec::namespaces(&linux),
            cgroups: [Some(container.cgroup.path().to_owned()), cgroup_of(init)]
                .into_iter()
                .flatten()
                .collect(),
            oom_score_adj: container.spec.process().as_ref().and_then(|process| process.oom_score_adj()),
        };
        let file = container.folder.join(format!("exec-{}.json", request.exec_id));
        let json = serde_json::to_vec(&join).context(|| "write the request".into())?;
        fs::write(&file, json).context(|| format!("write {}", file.display()))?;
        Ok((join, file))
    }

    fn run(
        &self,
        request: &JoinRequest,
        file: &Path,
        target: &OwnedFd,
        claimed: Claimed,
    ) -> Result<Arc<Process>> {
        let user = request.process.user();
        let spawning = self.reaper.spawning();
        let start = |ends| -> Result<Started> {
            let helper = Helper::spawn(Job::Join, file, ends, EXEC)?;
            helper.send(target)?;
            started(&helper)
        };
        if claimed.terminal {
            let Started { pid, terminal } = start([None, None, None])?;
            let exit = spawning.adopt(pid);
            let master = Arc::new(terminal.ok_or_else(|| Error::state("the process sent no terminal"))?);
            let streams = claimed.terminal(&master)?;
            Ok(Process::new(pid, exit, streams, Some(master), None))
        } else {
            let (streams, ends) = claimed.pipes(user.uid(), user.gid())?;
            let Started { pid, .. } = start(ends).inspect_err(|_| streams.hang_up())?;
            let exit = spawning.adopt(pid);
            Ok(Process::new(pid, exit, streams, None, None))
        }
    }
}

struct Started {
    pid: u32,
    terminal: Option<OwnedFd>,
}

/// Reads reports until the program runs.
fn started(helper: &Helper) -> Result<Started> {
    let (mut pid, mut terminal) = (None, None);
    while let Some((report, descriptor)) = helper.next()? {
        match report {
            Report::Pid(number) => pid = Some(number),
            Report::Terminal => terminal = descriptor,
            // `next` makes an error of a failure; the other is not said here.
            Report::Failed { .. } | Report::Ready => {}
        }
    }
    let pid = pid.ok_or_else(|| Error::state("the helper ended without a process"))?;
    Ok(Started { pid, terminal })
}

/// The cgroup a process is in: a container that manages cgroups itself moves its init process to one of its own.
fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let content = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = content.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(cgroup::ROOT).join(path))
}

impl Container {
    fn reserve(&self, exec: &str) -> Result<()> {
        if !limits::is_id(exec) {
            return Err(Error::invalid(format!("{exec:?} is no exec id")));
        }
        let mut processes = lock(&self.processes);
        if processes.len() >= limits::PROCESSES {
            // Ended processes are remembered for a host that asks late; the table is not for ever.
            processes.retain(|name, entry| {
                name.is_empty() || !matches!(entry, Entry::Ready(p) if p.exit().is_some())
            });
        }
        if processes.len() >= limits::PROCESSES {
            return Err(Error::new(
                Kind::Exhausted,
                format!("container {} has {} processes", self.id, limits::PROCESSES),
            ));
        }
        match processes.entry(exec.to_owned()) {
            MapEntry::Vacant(place) => {
                place.insert(Entry::Starting);
                Ok(())
            }
            MapEntry::Occupied(_) => {
                Err(Error::new(Kind::Exists, format!("container {} has a process {exec} already", self.id)))
            }
        }
    }
}
