//! The other side of a supervisor: starting one, waiting for it, and cleaning up after it should it be killed.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cloister_sandbox::Timing;

use super::channel::{Channel, Order, Plan, Report};
use crate::signals::Signals;
use crate::terminal::{self, Raw};
use crate::vm::{Folder, Vms};

/// How long the kernel may take to end the helpers of a killed supervisor.
const ORPHANS: Duration = Duration::from_secs(2);

/// Starts a supervisor for `plan` and stays with it as long as a foreground command or a detached start takes.
/// `on_start` is called once the process runs. Returns what to exit with.
pub async fn run(plan: Plan, folder: &Folder, lock: File, on_start: impl FnOnce(&[Timing])) -> Result<u8> {
    let result = attend(plan, folder, &lock, on_start).await;
    let killed = match &result {
        Ok(End::Reported(_) | End::Detached) => false,
        Ok(End::Killed(_)) | Err(_) => true,
    };
    if killed {
        // The lock is still held through this process's descriptor, so nobody else takes the folder meanwhile.
        await_orphans(folder);
        Vms::around(folder).abandon(folder, "its supervisor was killed")?;
    }
    match result? {
        End::Reported(code) => Ok(code),
        End::Detached => Ok(0),
        End::Killed(how) => {
            bail!("the supervisor of the microVM was killed ({how}); the microVM has ended with it")
        }
    }
}

enum End {
    Reported(u8),
    Detached,
    Killed(String),
}

async fn attend(plan: Plan, folder: &Folder, lock: &File, on_start: impl FnOnce(&[Timing])) -> Result<End> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let (detach, interactive, tty) = (plan.detach, plan.interactive, plan.terminal.is_some());
    // From here on signals are queued, none is lost between the start and the loop below.
    let mut signals = Signals::listen().context("cannot watch signals")?;
    let mut child =
        spawn(theirs.into(), folder, lock, detach, interactive).context("cannot start the supervisor")?;
    let (mut receiver, mut sender) = Channel::new(ours.into())?.split();
    sender.send(&Order::Start(Box::new(plan))).await.context("cannot instruct the supervisor")?;
    let mut raw = None;
    let mut on_start = Some(on_start);
    loop {
        tokio::select! {
            report = receiver.receive() => match report.unwrap_or_default() {
                Some(Report::Started { timings }) => {
                    if let Some(on_start) = on_start.take() {
                        on_start(&timings);
                    }
                    if detach {
                        return Ok(End::Detached);
                    }
                    if tty && interactive {
                        raw = Raw::enter().context("cannot use the terminal")?;
                    }
                    if tty && let Some((rows, columns)) = terminal::size() {
                        let _ = sender.send(&Order::Resize(rows, columns)).await;
                    }
                }
                Some(Report::Ended { code, reason }) => {
                    drop(raw.take());
                    if let Some(reason) = reason {
                        eprintln!("cloister: {reason}");
                    }
                    // It has nothing left to do; collecting it leaves no zombie behind a long-lived caller.
                    let _ = child.wait();
                    return Ok(End::Reported(code));
                }
                None => {
                    drop(raw.take());
                    let status = child.wait().context("cannot collect the supervisor")?;
                    let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                    return Ok(End::Killed(how));
                }
            },
            number = signals.next() => {
                let order = match (number, tty.then(terminal::size).flatten()) {
                    (libc::SIGWINCH, Some((rows, columns))) => Order::Resize(rows, columns),
                    (libc::SIGWINCH, None) => continue,
                    _ => Order::Signal(number),
                };
                // A supervisor that is gone shows in the other branch.
                let _ = sender.send(&order).await;
            }
        }
    }
}

/// Starts this program again as a supervisor, with two descriptors of its own.
fn spawn(
    channel: OwnedFd,
    folder: &Folder,
    lock: &File,
    detach: bool,
    interactive: bool,
) -> std::io::Result<std::process::Child> {
    // Duplicates without close-on-exec: this process starts no other program while they exist.
    let channel = rustix::io::dup(&channel)?;
    let lock = rustix::io::dup(lock)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("__supervise")
        .arg(format!("--channel={}", channel.as_raw_fd()))
        .arg(format!("--lock={}", lock.as_raw_fd()))
        .arg("--folder")
        .arg(folder.path());
    command.stdin(if interactive && !detach { Stdio::inherit() } else { Stdio::null() });
    if detach {
        command.stdout(Stdio::null());
    }
    command.spawn()
}

/// Waits until the processes that die with a supervisor are gone, as far as their files in its folder show.
fn await_orphans(folder: &Folder) {
    let begun = Instant::now();
    while begun.elapsed() < ORPHANS && users(folder) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether any process still has a file below the folder open.
fn users(folder: &Folder) -> bool {
    let me = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            return false;
        };
        if pid == me {
            return false;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { return false };
        descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(folder.path())))
    })
}
