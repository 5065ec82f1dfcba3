//! The PID namespace that the containers of a pod share, when they ask for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Context, Error, Result, lock};
use crate::reaper::{Exit, Reaper};
use crate::runtime::{Helper, Job, Report};

/// An empty folder for its first process.
const FOLDER: &str = "/run/cloister/pids";

/// How long its first process may take.
const CREATE: Duration = Duration::from_secs(30);

/// The namespace, once there is one.
#[derive(Default)]
pub struct Pids {
    first: Mutex<Option<First>>,
}

struct First {
    pid: u32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Pids {
    /// The path of the namespace, which is made if there is none. Blocks.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn path(&self, reaper: &Arc<Reaper>) -> Result<PathBuf> {
        let mut first = lock(&self.first);
        let pid = match &*first {
            Some(first) if first.exit.borrow().is_none() => first.pid,
            _ => {
                let made = make(reaper)?;
                first.insert(made).pid
            }
        };
        Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
    }
}

fn make(reaper: &Arc<Reaper>) -> Result<First> {
    fs::create_dir_all(FOLDER).context(|| format!("create {FOLDER}"))?;
    let spawning = reaper.spawning();
    let helper = Helper::spawn(Job::Pids, Path::new(FOLDER), [None, None, None], CREATE)?;
    let (mut pid, mut ready) = (None, false);
    while pid.is_none() || !ready {
        match helper.next()? {
            Some((Report::Pid(number), _)) => pid = Some(number),
            Some((Report::Ready, _)) => ready = true,
            _ => return Err(Error::state("the pod's first process ended before it was ready")),
        }
    }
    let pid = pid.unwrap_or_default();
    Ok(First { pid, exit: spawning.adopt(pid) })
}
