//! What a supervisor is told, by its command and by signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::channel::{Order, Receiver};
use super::end_now;
use super::outcome::Outcome;
use crate::exit;

/// Everything a supervisor is told while it works.
pub struct Inputs {
    receiver: Receiver,
    /// Whether the machine's life hangs on the command that started it: always in the foreground, and until the
    /// start is done when detached.
    pub tied: bool,
    detach: bool,
    end: Signal,
    term: Signal,
}

/// One thing it is told.
pub enum Told {
    Signal(i32),
    Resize(u16, u16),
    /// The command that waits in the foreground died.
    Orphaned,
    /// Someone wants the machine gone now.
    End,
    /// Someone wants a detached machine's command to end.
    Term,
}

impl Inputs {
    /// Begins to hear signals; one that comes earlier ends the process.
    pub fn listen(receiver: Receiver, detach: bool) -> std::io::Result<Self> {
        // Keys and hang-ups reach the whole foreground job, this process included; the command passes them on. A
        // handler that does nothing is used, as an ignored signal would be inherited by the VMM.
        for number in [
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGHUP,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGPIPE,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ] {
            // The handler stays when its stream goes.
            drop(signal(SignalKind::from_raw(number))?);
        }
        let end = signal(SignalKind::from_raw(end_now()))?;
        let term = signal(SignalKind::terminate())?;
        Ok(Self { receiver, tied: true, detach, end, term })
    }

    /// The next thing; may be dropped and called again.
    pub async fn next(&mut self) -> Told {
        loop {
            tokio::select! {
                _ = self.end.recv() => return Told::End,
                _ = self.term.recv(), if self.detach => return Told::Term,
                order = self.receiver.receive(), if self.tied => match order {
                    Ok(Some(Order::Signal(number))) => return Told::Signal(number),
                    Ok(Some(Order::Resize(rows, columns))) => return Told::Resize(rows, columns),
                    Ok(Some(Order::Start(_))) => {}
                    Ok(None) | Err(_) => return Told::Orphaned,
                },
            }
        }
    }

    /// Resolves when the start should be given up.
    pub async fn abort(&mut self) -> Outcome {
        loop {
            match self.next().await {
                Told::Signal(number) if ends_a_start(number) => {
                    return Outcome::failed(
                        exit::of_signal(number),
                        "ended by a signal before its command ran",
                    );
                }
                Told::Signal(_) | Told::Resize(..) => {}
                Told::Term => {
                    return Outcome::failed(exit::of_signal(libc::SIGTERM), "ended before its command ran");
                }
                Told::End => {
                    return Outcome::failed(exit::of_signal(libc::SIGKILL), "removed before its command ran");
                }
                Told::Orphaned => {
                    return Outcome::failed(exit::FAILED, "the command that started it was killed");
                }
            }
        }
    }
}

fn ends_a_start(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}
