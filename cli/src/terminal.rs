//! The terminal this program was started from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode for as long as this lives.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes the terminal on standard input pass every key on; `None` when it is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Rows and columns of the terminal; `None` without one.
pub fn size() -> Option<(u16, u16)> {
    let of = |fd: &dyn AsFd| tcgetwinsize(fd.as_fd()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    of(&io::stdout()).or_else(|| of(&io::stdin())).map(|size| (size.ws_row, size.ws_col))
}
