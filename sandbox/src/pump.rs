//! Moving bytes between a process's streams in the guest and file descriptors of the host.
//!
//! Each direction is one thread with blocking calls, so gigabytes of output never delay a control call, and a slow
//! reader on the host slows the guest's process down instead of growing a buffer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::oneshot;

/// Bytes moved at once.
const BUFFER: usize = 256 << 10;

/// How often the wait for a pump's end looks at its progress.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    /// Whether the pump is inside the consumer's `write`: its slowness is not the guest's.
    writing: AtomicBool,
}

/// The guest-to-host direction of one stream.
pub struct Output {
    stream: UnixStream,
    shared: Arc<Shared>,
    /// Closed at the end of the thread.
    done: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Copies everything the guest sends to `sink` until the guest half-closes or the sink fails; a failed sink
    /// closes the stream, which the guest's process sees as a closed pipe.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(stream: UnixStream, mut sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut source = stream.try_clone()?;
        let state = Arc::clone(&shared);
        let (running, done) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            let mut buffer = vec![0; BUFFER];
            loop {
                let got = match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(got) => got,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                state.writing.store(true, Ordering::Release);
                let written = buffer.get(..got).map_or(Ok(()), |bytes| sink.write_all(bytes));
                state.bytes.fetch_add(got as u64, Ordering::Relaxed);
                state.writing.store(false, Ordering::Release);
                if written.is_err() {
                    break;
                }
            }
            let _ = sink.flush();
            // Nothing to do about a peer that is gone already.
            let _ = source.shutdown(Shutdown::Both);
            drop(running);
        })?;
        Ok(Self { stream, shared, done, thread: Some(thread) })
    }

    /// Bytes copied so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Waits for the end of the stream after its process has ended. Time does not bound this, progress does: the
    /// stream is cut when nothing arrived for `quiet` although the consumer was ready.
    pub async fn finish(mut self, quiet: Duration) {
        let mut seen = self.bytes();
        let mut since = Instant::now();
        while tokio::time::timeout(LOOK, &mut self.done).await.is_err() {
            let now = self.bytes();
            if now != seen || self.shared.writing.load(Ordering::Acquire) {
                seen = now;
                since = Instant::now();
            } else if since.elapsed() > quiet {
                tracing::debug!("the guest left a stream open after its process ended");
                let _ = self.stream.shutdown(Shutdown::Both);
                break;
            }
        }
        if let Some(thread) = self.thread.take() {
            // The thread is past its last wait on the guest: joining is short.
            let _ = thread.join();
        }
    }
}

/// The host-to-guest direction of one stream.
pub struct Input {
    stream: UnixStream,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Input {
    /// Copies `source` into the guest until its end, then half-closes the stream.
    ///
    /// # Errors
    /// When no thread or event descriptor can be made.
    pub fn start(stream: UnixStream, source: OwnedFd) -> io::Result<Self> {
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let mut target = stream.try_clone()?;
        let thread = std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            let mut buffer = vec![0; BUFFER];
            while wait_readable(source.as_fd(), stopped.as_fd()) {
                match rustix::io::read(&source, &mut buffer) {
                    Ok(0) => break,
                    Ok(got) => {
                        if buffer.get(..got).is_none_or(|bytes| target.write_all(bytes).is_err()) {
                            return;
                        }
                    }
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                    // A terminal whose foreground job is another one; it may come back.
                    Err(rustix::io::Errno::IO) if rustix::termios::isatty(&source) => {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    Err(_) => break,
                }
            }
            // A peer that is gone has seen the end already.
            let _ = target.shutdown(Shutdown::Write);
        })?;
        Ok(Self { stream, stop, thread: Some(thread) })
    }

    /// Stops copying, whatever the source and the guest do.
    pub fn stop(&mut self) {
        // An eventfd takes a first increment without waiting.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until `source` can be read; false when `stop` was signalled first.
fn wait_readable(source: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> bool {
    loop {
        let mut fds =
            [PollFd::from_borrowed_fd(source, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {
                let [source, stop] = fds;
                if !stop.revents().is_empty() {
                    return false;
                }
                if !source.revents().is_empty() {
                    return true;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A descriptor written without a library's buffer. Standard output may be in non-blocking mode when another program
/// shares it, so a full one is waited for.
pub struct FdWriter(OwnedFd);

impl FdWriter {
    /// Writes to `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Write for FdWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(rustix::io::Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    poll(&mut fds, None)?;
                }
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn output_is_complete_when_the_peer_closes() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let kept = Kept::default();
        let output = Output::start(host, Box::new(kept.clone())).unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let sent = data.clone();
        std::thread::spawn(move || guest.write_all(&sent).unwrap());
        output.finish(Duration::from_secs(5)).await;
        assert!(*kept.0.lock().unwrap() == data);
    }

    #[tokio::test]
    async fn a_stream_left_open_is_cut_after_quiet_time() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"last words").unwrap();
        let kept = Kept::default();
        let begun = Instant::now();
        Output::start(host, Box::new(kept.clone())).unwrap().finish(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert_eq!(*kept.0.lock().unwrap(), b"last words");
    }

    #[test]
    fn the_end_of_input_becomes_a_half_close() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let _input = Input::start(host, reader).unwrap();
        rustix::io::write(&writer, b"hello").unwrap();
        drop(writer);
        let mut got = Vec::new();
        guest.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"hello");
        guest.write_all(b"still open this way").unwrap();
    }

    #[test]
    fn input_stops_although_nobody_types_and_nobody_reads() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut input = Input::start(host, reader).unwrap();
        let begun = Instant::now();
        input.stop();
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
