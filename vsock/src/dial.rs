//! Connections from the host into the guest, for other threads of this process.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use crate::conn::Key;
use crate::error::DialError;
use crate::metrics::{Counters, Metrics};

/// Called once with the outcome of a dial, on the device's thread: it must not block.
pub type DialCallback = Box<dyn FnOnce(Result<UnixStream, DialError>) + Send>;

/// Extra time a blocking dial gives the device's thread to report a timeout itself.
const GRACE: Duration = Duration::from_secs(1);

/// Commands for the device's thread.
pub(crate) enum Command {
    Dial { port: u32, ours: UnixStream, waiter: Waiter, deadline: Instant },
    Stop,
}

/// Who waits for the guest to accept a connection.
pub(crate) enum Waiter {
    /// A caller in this process, and the end of the socket pair it gets.
    Caller { theirs: UnixStream, after: Duration, callback: DialCallback },
    /// A program on the hybrid socket.
    Hybrid,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Caller { .. } => "Caller",
            Self::Hybrid => "Hybrid",
        })
    }
}

impl Waiter {
    /// The guest accepted.
    pub(crate) fn accepted(self, key: Key, socket: &UnixStream) {
        match self {
            Self::Caller { theirs, callback, .. } => callback(Ok(theirs)),
            Self::Hybrid => {
                let answer = format!("OK {}\n", key.host_port);
                // The socket is empty. If its other end is closed, reading it will tell.
                let _ = send(socket, answer.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    }

    /// The connection will not be made. A program on the hybrid socket sees it close.
    pub(crate) fn failed(self, port: u32, reason: Failure) {
        if let Self::Caller { after, callback, .. } = self {
            callback(Err(match reason {
                Failure::Refused => DialError::Refused { port },
                Failure::Timeout => DialError::Timeout { port, after },
                Failure::Closed => DialError::Closed { port },
                Failure::Full(limit) => DialError::TooManyConnections { port, limit },
                Failure::System(what, source) => DialError::System { port, what, source },
            }));
        }
    }
}

/// Why a dial failed, without what only the waiter knows.
pub(crate) enum Failure {
    Refused,
    Timeout,
    Closed,
    Full(usize),
    System(&'static str, io::Error),
}

/// Makes connections into one guest. Cheap to clone; any thread may use it, and it may outlive the device.
#[derive(Clone, Debug)]
pub struct Dialer {
    pub(crate) commands: std::sync::mpsc::Sender<Command>,
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) counters: Arc<Counters>,
}

impl Dialer {
    /// Connects to `port` in the guest and blocks until the guest accepts or refuses, at most `timeout`.
    ///
    /// Before the guest's driver is ready the request is held, not lost. The stream is one end of a Unix socket pair: `shutdown`
    /// of one direction reaches the guest as such, and the reverse.
    ///
    /// # Errors
    /// [`DialError`]: refused, timed out, too many connections, or the VM is gone.
    pub fn dial(&self, port: u32, timeout: Duration) -> Result<UnixStream, DialError> {
        let (sender, receiver): (SyncSender<Result<UnixStream, DialError>>, _) = sync_channel(1);
        self.dial_with(port, timeout, Box::new(move |outcome| drop(sender.send(outcome))));
        match receiver.recv_timeout(timeout.saturating_add(GRACE)) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(DialError::Timeout { port, after: timeout }),
            Err(RecvTimeoutError::Disconnected) => Err(DialError::Closed { port }),
        }
    }

    /// As [`dial`](Self::dial), without blocking: `callback` gets the outcome, once, unless the device ends at this very moment, when it
    /// is dropped uncalled (a channel's sender inside it then tells the receiver).
    pub fn dial_with(&self, port: u32, timeout: Duration, callback: DialCallback) {
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(source) => {
                return callback(Err(DialError::System { port, what: "making a socket pair", source }));
            }
        };
        // A deadline beyond what the clock can say is as good as a day.
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400));
        let waiter = Waiter::Caller { theirs, after: timeout, callback };
        if let Err(refused) = self.commands.send(Command::Dial { port, ours, waiter, deadline })
            && let Command::Dial { waiter, .. } = refused.0
        {
            return waiter.failed(port, Failure::Closed);
        }
        self.wake();
    }

    /// The device's counters.
    pub fn metrics(&self) -> Metrics {
        self.counters.read()
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}
