//! One process of a container.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::watch;

use super::stdio::Streams;
use crate::error::{Context, Error, Result, lock};
use crate::reaper::Exit;
use crate::runtime::Helper;

/// A process's name is taken as soon as it is being started.
pub enum Entry {
    /// Being started.
    Starting,
    /// Known by its number.
    Ready(Arc<Process>),
}

/// One process.
pub struct Process {
    /// Its number in the guest.
    pub pid: u32,
    exit: watch::Receiver<Option<Exit>>,
    streams: Streams,
    /// Until it ended.
    terminal: Mutex<Option<Arc<OwnedFd>>>,
    /// Until an init process was started: its end of the channel.
    pub waiting: Mutex<Option<Helper>>,
}

impl Process {
    /// A process that exists.
    pub fn new(
        pid: u32,
        exit: watch::Receiver<Option<Exit>>,
        streams: Streams,
        terminal: Option<Arc<OwnedFd>>,
        waiting: Option<Helper>,
    ) -> Arc<Self> {
        Arc::new(Self { pid, exit, streams, terminal: Mutex::new(terminal), waiting: Mutex::new(waiting) })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Never while the reaper lives.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.clone();
        let seen =
            exit.wait_for(Option::is_some).await.context(|| format!("wait for process {}", self.pid))?;
        (*seen).ok_or_else(|| Error::state("the process has not ended"))
    }

    /// A receiver of its end.
    pub fn exits(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// Tells the pumps that it ended.
    pub fn ended(&self) {
        lock(&self.terminal).take();
        self.streams.ended();
    }

    /// Closes its input once everything sent was read.
    pub fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    /// Ends its streams at once.
    pub fn hang_up(&self) {
        lock(&self.waiting).take();
        self.streams.hang_up();
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// When it has none or ended, or a size is out of range.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let terminal =
            lock(&self.terminal).clone().ok_or_else(|| Error::state("the process has no terminal"))?;
        resize(&terminal, rows, columns)
    }
}

/// Sets the size of a terminal.
///
/// # Errors
/// When a size is out of range.
pub fn resize(terminal: &OwnedFd, rows: u32, columns: u32) -> Result<()> {
    let number =
        |n: u32| u16::try_from(n).map_err(|_| Error::invalid(format!("a terminal of {rows} x {columns}")));
    let size = Winsize { ws_row: number(rows)?, ws_col: number(columns)?, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context(|| "resize the terminal".into())
}
