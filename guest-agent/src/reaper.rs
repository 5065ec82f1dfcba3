//! Every child of PID 1, adopted orphans included, is reaped here and nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Context, Error, Result, lock};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub code: u32,
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
}

#[derive(Default)]
struct State {
    /// Processes of containers that run.
    running: HashMap<u32, watch::Sender<Option<Exit>>>,
    /// Children that ended while a helper was at work, and may turn out to be its container process.
    unclaimed: HashMap<u32, Exit>,
    /// Helpers at work.
    spawning: usize,
}

/// The table of children.
#[derive(Default)]
pub struct Reaper {
    state: Mutex<State>,
}

/// While this lives, a process that ends before it is adopted is remembered.
pub struct Spawning {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// To be called before a helper starts that makes a container process.
    pub fn spawning(self: &Arc<Self>) -> Spawning {
        lock(&self.state).spawning += 1;
        Spawning { reaper: Arc::clone(self) }
    }

    /// Reaps at each SIGCHLD, for ever.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub async fn run(self: Arc<Self>) -> Result<()> {
        let mut children = signal(SignalKind::child()).context(|| "handle SIGCHLD".into())?;
        loop {
            self.reap();
            children.recv().await;
        }
    }

    fn reap(&self) {
        let mut state = lock(&self.state);
        loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call. Children are reaped under the lock, so a process that
            // `signal` found in the table cannot have given its number to another one.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            let Ok(pid @ 1..) = u32::try_from(pid) else { return };
            let exit = Exit { code: code(status), at: now() };
            if let Some(sender) = state.running.remove(&pid) {
                sender.send_replace(Some(exit));
            } else if state.spawning > 0 {
                state.unclaimed.insert(pid, exit);
            }
        }
    }

    /// Sends a signal to a process that runs; says whether it did.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn signal(&self, pid: u32, signal: i32) -> Result<bool> {
        let state = lock(&self.state);
        if !state.running.contains_key(&pid) {
            return Ok(false);
        }
        let target =
            libc::pid_t::try_from(pid).map_err(|_| Error::invalid(format!("{pid} is no process id")))?;
        // SAFETY: a plain system call.
        match unsafe { libc::kill(target, signal) } {
            0 => Ok(true),
            _ => Err(std::io::Error::last_os_error())
                .context(|| format!("send signal {signal} to process {pid}")),
        }
    }
}

impl Spawning {
    /// Takes a process into the table; its end is seen by the receiver, even if it was before this call.
    pub fn adopt(&self, pid: u32) -> watch::Receiver<Option<Exit>> {
        let mut state = lock(&self.reaper.state);
        let ended = state.unclaimed.remove(&pid);
        let (sender, receiver) = watch::channel(ended);
        if ended.is_none() {
            state.running.insert(pid, sender);
        }
        receiver
    }
}

impl Drop for Spawning {
    fn drop(&mut self) {
        let mut state = lock(&self.reaper.state);
        state.spawning -= 1;
        if state.spawning == 0 {
            state.unclaimed.clear();
        }
    }
}

fn code(status: i32) -> u32 {
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    code.unsigned_abs()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_shell() {
        assert_eq!(code(0), 0);
        assert_eq!(code(3 << 8), 3);
        assert_eq!(code(libc::SIGKILL), 137);
    }

    #[test]
    fn a_process_that_ended_before_it_was_adopted_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let spawning = reaper.spawning();
        let exit = Exit { code: 7, at: 1 };
        lock(&reaper.state).unclaimed.insert(42, exit);
        assert_eq!(*spawning.adopt(42).borrow(), Some(exit));
        assert_eq!(*spawning.adopt(42).borrow(), None);
        drop(spawning);
        assert!(lock(&reaper.state).unclaimed.is_empty());
    }
}
