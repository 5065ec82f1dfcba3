//! The device as its owner sees it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::config::Config;
use crate::dial::{Command, Dialer};
use crate::error::{DialError, Error};
use crate::metrics::{Counters, Metrics};
use crate::worker::Worker;

/// Least credit of a connection, in bytes: below, packets become so small that nothing works well.
const MIN_CREDIT: usize = 4096;

/// A running device. Dropping it ends its thread and all its connections.
#[derive(Debug)]
pub struct Device {
    dialer: Dialer,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Starts a device that serves `frontend`, a connected vhost-user socket, on a thread of its own.
    ///
    /// The other end of the socket goes to QEMU: `-chardev socket,id=vsock0,fd=N -device vhost-user-vsock-pci,chardev=vsock0` with
    /// guest memory that is `share=on`. The device ends when that socket is closed.
    ///
    /// # Errors
    /// [`Error`], if a limit makes no sense, the hybrid socket cannot be made, or the system refuses a descriptor or the thread.
    pub fn spawn(config: Config, frontend: impl Into<OwnedFd>) -> Result<Self, Error> {
        check(&config)?;
        let counters = Arc::new(Counters::default());
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| Error::System { what: "making an event descriptor", source: source.into() })?;
        let wake = Arc::new(wake);
        let (commands, receiver) = channel();
        let worker =
            Worker::new(config, UnixStream::from(frontend.into()), receiver, wake.clone(), counters.clone())?;
        let thread = std::thread::Builder::new()
            .name("vsock".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| Error::System { what: "starting a thread", source })?;
        Ok(Self { dialer: Dialer { commands, wake, counters }, thread: Some(thread) })
    }

    /// As [`spawn`](Self::spawn), with the socket pair made here: returns the end for QEMU, close-on-exec.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn pair(config: Config) -> Result<(Self, OwnedFd), Error> {
        let (ours, theirs) = UnixStream::pair()
            .map_err(|source| Error::System { what: "making a socket pair for vhost-user", source })?;
        Ok((Self::spawn(config, ours)?, theirs.into()))
    }

    /// Connects to a port in the guest: [`Dialer::dial`].
    ///
    /// # Errors
    /// [`DialError`].
    pub fn dial(&self, port: u32, timeout: Duration) -> Result<UnixStream, DialError> {
        self.dialer.dial(port, timeout)
    }

    /// A handle for other threads.
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// The counters.
    pub fn metrics(&self) -> Metrics {
        self.dialer.metrics()
    }

    /// Whether the device still serves its VM.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the device and waits for its thread, which is done within milliseconds. What host sides have not read by now is lost.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.dialer.commands.send(Command::Stop);
            self.dialer.wake();
            let _ = thread.join();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.end();
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let limits = &config.limits;
    let wrong = |what, value, allowed| Err(Error::Config { what, value, allowed });
    if !(3..u64::from(u32::MAX)).contains(&config.guest_cid) {
        return wrong("guest CID", config.guest_cid, "3 to 4294967294");
    }
    if !(1..=65_536).contains(&limits.connections) {
        return wrong("limit on connections", limits.connections as u64, "1 to 65536");
    }
    if !(MIN_CREDIT..=1 << 30).contains(&limits.connection_buffer) {
        return wrong("buffer of a connection", limits.connection_buffer as u64, "4096 bytes to 1 GiB");
    }
    if limits.total_buffer / 2 / limits.connections < MIN_CREDIT {
        return wrong(
            "buffer of all connections",
            limits.total_buffer as u64,
            "8192 bytes or more per connection",
        );
    }
    Ok(())
}
