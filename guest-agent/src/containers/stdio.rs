//! The standard streams of a process: pipes or a terminal on its side, vsock connections on the host's.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use cloister_protocol::v1;
use rustix::fs::{Gid, Uid, fchown};
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::process::resize;
use crate::error::{Context, Result, lock};
use crate::streams::{Flow, Signal, Streams as Unclaimed, pump};

/// Bytes a pipe holds: a burst of output does not stop the process, and one wake-up moves much.
const PIPE: usize = 256 << 10;

/// The connections that a request names, taken from the unclaimed ones.
pub struct Claimed {
    stdin: Option<Arc<OwnedFd>>,
    stdout: Option<Arc<OwnedFd>>,
    stderr: Option<Arc<OwnedFd>>,
    /// The process has a terminal.
    pub terminal: bool,
    rows: u32,
    columns: u32,
}

/// What is kept of a process's streams while it lives.
pub struct Streams {
    /// The pumps own the connections, which close with the last of them.
    sockets: Vec<Weak<OwnedFd>>,
    /// Until it ended: ended processes are remembered, their descriptors are not.
    signals: Mutex<Option<Signals>>,
}

#[derive(Clone)]
struct Signals {
    exited: Arc<Signal>,
    close: Arc<Signal>,
}

impl Claimed {
    /// Takes the streams of a request.
    ///
    /// # Errors
    /// When one is not open. Those taken before it are closed.
    pub fn take(unclaimed: &Unclaimed, stdio: Option<&v1::Stdio>) -> Result<Self> {
        let default = v1::Stdio::default();
        let stdio = stdio.unwrap_or(&default);
        let take =
            |field: &[u8]| -> Result<Option<Arc<OwnedFd>>> { Ok(unclaimed.claim(field)?.map(Arc::new)) };
        let stdin = take(&stdio.stdin)?;
        // One connection may carry both directions of a terminal.
        let both = stdio.terminal && !stdio.stdin.is_empty() && stdio.stdin == stdio.stdout;
        Ok(Self {
            stdout: if both { stdin.clone() } else { take(&stdio.stdout)? },
            stdin,
            stderr: if stdio.terminal { None } else { take(&stdio.stderr)? },
            terminal: stdio.terminal,
            rows: stdio.rows,
            columns: stdio.columns,
        })
    }

    fn keep(&self) -> Result<(Streams, Signals)> {
        let what = || "prepare streams".into();
        let sockets =
            [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(Arc::downgrade).collect();
        let signals = Signals { exited: Signal::new().context(what)?, close: Signal::new().context(what)? };
        Ok((Streams { sockets, signals: Mutex::new(Some(signals.clone())) }, signals))
    }

    /// Makes pipes, owned by the process's user so that it can open `/dev/stdout`, and starts to move bytes. Gives the
    /// process's ends; a stream without a connection is the null device.
    ///
    /// # Errors
    /// When the guest runs out of descriptors or threads.
    pub fn pipes(self, uid: u32, gid: u32) -> Result<(Streams, [Option<OwnedFd>; 3])> {
        let (streams, signals) = self.keep()?;
        let what = || "make a pipe for the process".into();
        let pipe = || -> Result<(OwnedFd, OwnedFd)> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(what)?;
            // Less than asked for is slower, not wrong.
            let _ = fcntl_setpipe_size(&write, PIPE);
            for end in [&read, &write] {
                fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context(what)?;
            }
            Ok((read, write))
        };
        let mut ends = [None, None, None];
        if let Some(socket) = self.stdin {
            let (read, write) = pipe()?;
            ends[0] = Some(read);
            let flow = Flow::Input { exited: Arc::clone(&signals.exited), close: Arc::clone(&signals.close) };
            pump("stdin", socket, Arc::new(write), flow).context(what)?;
        }
        for (index, name, socket) in [(1, "stdout", self.stdout), (2, "stderr", self.stderr)] {
            if let Some(socket) = socket {
                let (read, write) = pipe()?;
                ends[index] = Some(write);
                pump(name, Arc::new(read), socket, Flow::Output { exited: Arc::clone(&signals.exited) })
                    .context(what)?;
            }
        }
        Ok((streams, ends))
    }

    /// Connects a terminal, given by its master side.
    ///
    /// # Errors
    /// When the guest runs out of threads.
    pub fn terminal(self, master: &Arc<OwnedFd>) -> Result<Streams> {
        let (streams, signals) = self.keep()?;
        let what = || "connect the terminal".into();
        if self.rows > 0 && self.columns > 0 {
            resize(master, self.rows, self.columns)?;
        }
        if let Some(socket) = self.stdin {
            let flow = Flow::Input { exited: Arc::clone(&signals.exited), close: Arc::clone(&signals.close) };
            pump("terminal", socket, Arc::clone(master), flow).context(what)?;
        }
        if let Some(socket) = self.stdout {
            let flow = Flow::Output { exited: Arc::clone(&signals.exited) };
            pump("terminal", Arc::clone(master), socket, flow).context(what)?;
        }
        Ok(streams)
    }
}

impl Streams {
    /// The process ended: input stops, output drains.
    pub fn ended(&self) {
        if let Some(signals) = lock(&self.signals).take() {
            signals.exited.set();
        }
    }

    /// Input ends once it settles.
    pub fn close_stdin(&self) {
        if let Some(signals) = &*lock(&self.signals) {
            signals.close.set();
        }
    }

    /// Everything ends at once.
    pub fn hang_up(&self) {
        self.ended();
        for socket in self.sockets.iter().filter_map(Weak::upgrade) {
            let _ = shutdown(&*socket, Shutdown::Both);
        }
    }
}
