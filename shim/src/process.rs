//! One process of a container, from its announcement to its end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::failure::{Failure, Result};
use crate::io::{self, Names};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its exit code, or 128 + the signal.
    pub code: u32,
    /// When, by the host's clock.
    pub at: SystemTime,
}

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was announced or prepared.
    Created,
    /// It runs.
    Running,
    /// It is over.
    Ended(End),
}

/// A process.
pub struct Process {
    /// Its container.
    pub container: String,
    /// Its name in the container; empty for the container's own.
    pub exec: String,
    /// The guest's name of it.
    pub guest: String,
    /// Its streams.
    pub names: Names,
    /// What to run, for one that is not the container's own: an OCI `process` object.
    pub spec: Vec<u8>,
    /// Held while it is started, and while its end is told.
    pub order: tokio::sync::Mutex<()>,
    state: watch::Sender<State>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    stdin: Option<OwnedFd>,
    words: Option<File>,
    /// Rows and columns asked for before the process runs.
    size: (u16, u16),
}

impl Process {
    /// A process that does not run yet.
    pub fn new(container: &str, exec: &str, guest: &str, names: Names, spec: Vec<u8>) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            guest: guest.to_owned(),
            names,
            spec,
            order: tokio::sync::Mutex::default(),
            state: watch::channel(State::Created).0,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it has come.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Its end, if it has come.
    pub fn end(&self) -> Option<End> {
        match self.state() {
            State::Ended(end) => Some(end),
            State::Created | State::Running => None,
        }
    }

    /// Opens its streams; what the shim keeps of them is kept.
    pub async fn open(&self) -> Result<cloister_sandbox::Io> {
        let mut streams = io::open(&self.names).await?;
        let mut held = self.held();
        (held.stdin, held.words) = (streams.stdin, streams.words);
        streams.io.terminal = self.names.terminal.then_some(held.size);
        Ok(streams.io)
    }

    /// Remembers the size of its terminal; says whether it is too early to tell the guest.
    pub fn resized(&self, size: (u16, u16)) -> bool {
        self.held().size = size;
        self.state() == State::Created
    }

    /// Ends its input, as far as the shim holds it open.
    pub fn close_stdin(&self) {
        self.held().stdin = None;
    }

    /// Lets go of its streams, so that their readers see the end once the output has arrived.
    pub fn close(&self) {
        let mut held = self.held();
        (held.stdin, held.words) = (None, None);
    }

    /// It runs now; false when it has ended already.
    pub fn started(&self) -> bool {
        self.state.send_if_modified(|state| {
            let created = *state == State::Created;
            if created {
                *state = State::Running;
            }
            created
        })
    }

    /// It has ended; `reason` is told to its reader when it did not end by itself. False when that was known.
    pub fn ended(&self, code: u32, reason: Option<&str>) -> bool {
        let end = State::Ended(End { code, at: SystemTime::now() });
        let words = {
            let mut held = self.held();
            held.stdin = None;
            held.words.take()
        };
        if let (Some(words), Some(reason)) = (words, reason) {
            io::say(&words, reason);
        }
        self.state.send_if_modified(|state| {
            let first = !matches!(state, State::Ended(_));
            if first {
                *state = end;
            }
            first
        })
    }

    /// Waits for its end. Has no deadline.
    pub async fn wait(&self) -> Result<End> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_))).await;
        match ended.map(|state| *state) {
            Ok(State::Ended(end)) => Ok(end),
            _ => Err(Failure::NotFound(format!("process {} of {} is gone", self.exec, self.container))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts() {
        let process = Process::new("c", "", "", Names::default(), Vec::new());
        assert!(process.started());
        assert!(process.ended(3, None));
        assert!(!process.ended(255, Some("late")));
        assert_eq!(process.wait().await.unwrap().code, 3);
        assert!(!process.started(), "what has ended does not run again");
    }
}
