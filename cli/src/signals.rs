//! Signals of this process, as they are passed on to a process in a guest.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What docker's `--sig-proxy` passes on, of the signals people and service managers send.
const PASSED_ON: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGCONT];

/// Signals as a queue: each that arrives, once; `SIGWINCH` among them.
pub struct Signals(mpsc::UnboundedReceiver<i32>);

impl Signals {
    /// Takes over the signals that are passed on, and changes of the terminal's size.
    pub fn listen() -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for number in PASSED_ON.into_iter().chain([libc::SIGWINCH]) {
            let mut source: Signal = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            // Ends with the runtime, or when nobody receives any more.
            tokio::spawn(
                async move { while source.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self(receiver))
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        match self.0.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        }
    }

    /// The exit code of the next signal that ends a command.
    pub async fn interrupted(&mut self) -> u8 {
        loop {
            let number = self.next().await;
            if matches!(number, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                return crate::exit::of_signal(number);
            }
        }
    }
}

/// The number of a signal by name or number: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`.
pub fn parse(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    // The C library's, which keeps two real-time signals for itself.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let number =
            RTMIN + if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (RTMIN..=RTMAX).contains(&number).then_some(number);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(parse("SIGTERM"), Some(15));
        assert_eq!(parse("kill"), Some(9));
        assert_eq!(parse("28"), Some(28));
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        for bad in ["", "SIGNOPE", "0", "65", "-1", "RTMIN+99", "RTMIN-1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
