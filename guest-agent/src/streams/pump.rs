//! Threads that move bytes between a process and its streams.
//!
//! One thread per direction: a reader that stops reading holds up nobody else, and the control calls run on another
//! thread of a higher priority. Between a pipe and a socket the bytes never enter user space (`splice(2)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{SpliceFlags, splice};

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// After the process ended, how long its output may stay silent while something it left behind keeps it open.
const SILENCE: Duration = Duration::from_secs(1);

/// After `close`, how long the input may stay silent until it counts as all read.
const SETTLE: Duration = Duration::from_millis(200);

/// After the last byte of output, how long the host may take to read it before the connection is reset.
const LINGER: Duration = Duration::from_secs(300);

/// A flag that threads can wait for together with descriptors. Never unset.
pub struct Signal(OwnedFd);

impl Signal {
    /// An unset flag.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Sets the flag.
    pub fn set(&self) {
        // Fails only when the counter is full, and then it is set.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Which way a pump moves, and when it stops before its source ends.
pub enum Flow {
    /// Process to host. Stops when the process has ended and its output stays silent.
    Output {
        /// Set when the process ended.
        exited: Arc<Signal>,
    },
    /// Host to process. Stops when the process ended, or when it settles after `close`.
    Input {
        /// Set when the process ended.
        exited: Arc<Signal>,
        /// Set when the host asked to close the input.
        close: Arc<Signal>,
    },
}

/// Starts a thread that moves everything from `from` to `to`. The thread ends with either side; shutting the socket down
/// ends it at any time.
///
/// # Errors
/// When no thread can be started.
pub fn pump(name: &str, from: Arc<OwnedFd>, to: Arc<OwnedFd>, flow: Flow) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(64 << 10).spawn(move || {
        // The agent's own priority is for control calls.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 0);
        match flow {
            Flow::Output { exited } => {
                run(&from, &to, &exited, None);
                drop(from); // whoever still writes is told (SIGPIPE)
                finish(&to);
            }
            Flow::Input { exited, close } => run(&from, &to, &exited, Some(&close)),
        }
    })?;
    Ok(())
}

/// Moves until the source ends, the sink fails, or a signal says so. `close` is given for input.
fn run(from: &OwnedFd, to: &OwnedFd, exited: &Signal, close: Option<&Signal>) {
    let mut buffer = None;
    let input = close.is_some();
    let stop = close.unwrap_or(exited);
    let mut stopping = false;
    loop {
        // A signal that was seen is not waited for again: it stays set.
        let timeout = stopping.then_some(if input { SETTLE } else { SILENCE });
        let ready = wait(
            [
                (from.as_fd(), PollFlags::IN),
                (to.as_fd(), PollFlags::empty()),
                (exited.0.as_fd(), if input { PollFlags::IN } else { PollFlags::empty() }),
                (stop.0.as_fd(), if stopping { PollFlags::empty() } else { PollFlags::IN }),
            ],
            timeout,
        );
        let Ok([source, sink, ended, stopped]) = ready else { return };
        if input && !ended.is_empty() || sink.intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
        if !source.is_empty() {
            match transfer(from.as_fd(), to.as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        } else if !stopped.is_empty() {
            stopping = true;
        } else if stopping {
            return; // silent for long enough
        }
    }
}

fn wait<const N: usize>(
    what: [(BorrowedFd<'_>, PollFlags); N],
    timeout: Option<Duration>,
) -> rustix::io::Result<[PollFlags; N]> {
    let mut fds = what.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    let timeout =
        timeout.map(|t| Timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => return Ok(fds.map(|fd| fd.revents())),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Moves what there is, at most [`CHUNK`] bytes; 0 at the end. Falls back to copying where one side cannot splice.
fn transfer(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    buffer: &mut Option<Vec<u8>>,
) -> rustix::io::Result<usize> {
    loop {
        let moved = match buffer {
            None => splice(from, None, to, None, CHUNK, SpliceFlags::empty()),
            Some(buffer) => copy(from, to, buffer),
        };
        match moved {
            Err(Errno::INTR) => {}
            Err(Errno::INVAL) if buffer.is_none() => *buffer = Some(vec![0; CHUNK]),
            other => return other,
        }
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let length = read(from, &mut *buffer)?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// Ends the output and waits for the host to hang up: a connection closed with bytes in flight may be reset.
fn finish(socket: &OwnedFd) {
    if shutdown(socket, Shutdown::Write).is_ok() {
        let _ = wait([(socket.as_fd(), PollFlags::RDHUP)], Some(LINGER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
    }

    fn socket() -> (Arc<OwnedFd>, UnixStream) {
        let (agent, host) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (Arc::new(agent.into()), host)
    }

    #[test]
    fn output_arrives_whole_and_then_ends() {
        let (read, write) = pipe();
        let (agent, mut host) = socket();
        let exited = Signal::new().unwrap();
        pump("t", Arc::new(read), agent, Flow::Output { exited: Arc::clone(&exited) }).unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || std::fs::File::from(write).write_all(&sent).unwrap());
        let mut seen = Vec::new();
        host.read_to_end(&mut seen).unwrap();
        writer.join().unwrap();
        assert!(seen == expected);
    }

    #[test]
    fn output_held_open_by_a_leftover_ends_after_silence() {
        let (read, write) = pipe();
        let (agent, mut host) = socket();
        let exited = Signal::new().unwrap();
        pump("t", Arc::new(read), agent, Flow::Output { exited: Arc::clone(&exited) }).unwrap();
        rustix::io::write(&write, b"last words").unwrap();
        exited.set();
        let start = Instant::now();
        let mut seen = Vec::new();
        host.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"last words");
        assert!(start.elapsed() >= SILENCE && start.elapsed() < SILENCE * 5);
        drop(write);
    }

    #[test]
    fn input_ends_with_the_hosts_half_close() {
        let (read, write) = pipe();
        let (agent, mut host) = socket();
        let (exited, close) = (Signal::new().unwrap(), Signal::new().unwrap());
        pump("t", agent, Arc::new(write), Flow::Input { exited, close }).unwrap();
        host.write_all(b"all of it").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let mut seen = Vec::new();
        std::fs::File::from(read).read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"all of it");
    }

    #[test]
    fn closing_input_lets_what_was_sent_through() {
        let (read, write) = pipe();
        let (agent, mut host) = socket();
        let (exited, close) = (Signal::new().unwrap(), Signal::new().unwrap());
        host.write_all(b"sent before").unwrap();
        close.set();
        pump("t", agent, Arc::new(write), Flow::Input { exited, close }).unwrap();
        let mut seen = Vec::new();
        std::fs::File::from(read).read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"sent before");
    }

    #[test]
    fn a_reader_that_left_ends_the_writer() {
        let (read, write) = pipe();
        let (agent, host) = socket();
        let exited = Signal::new().unwrap();
        pump("t", Arc::new(read), agent, Flow::Output { exited }).unwrap();
        drop(host);
        let mut writer = std::fs::File::from(write);
        let end = Instant::now() + Duration::from_secs(5);
        while writer.write_all(&[0; 4096]).is_ok() {
            assert!(Instant::now() < end);
        }
    }
}
