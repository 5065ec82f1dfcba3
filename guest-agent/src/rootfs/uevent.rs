//! Waiting for a device to appear, without polling: the kernel tells about each one on a netlink socket.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::error::{Context, Error, Kind, Result};

/// How long a device may take after the host plugged it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Calls `look` until it finds something, once now and then after each device event.
///
/// # Errors
/// What `look` fails with, or [`Kind::Timeout`] with `what` in it.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    if let Some(found) = look()? {
        return Ok(found);
    }
    let events = listen().context(|| "listen for device events".into())?;
    let end = Instant::now() + DEADLINE;
    loop {
        // The socket exists by now, so what appears after this look makes an event.
        if let Some(found) = look()? {
            return Ok(found);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(Kind::Timeout, format!("{what} did not appear within {DEADLINE:?}")));
        }
        // A node under /dev can be a moment later than its event.
        let left = left.min(Duration::from_millis(250));
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(&events, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            ready => {
                ready.context(|| "wait for device events".into())?;
                drain(&events);
            }
        }
    }
}

fn listen() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

fn drain(events: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    // Content does not matter: `look` decides. An error (such as an overrun) only means "look again".
    while matches!(recv(events.as_fd(), &mut buffer[..], RecvFlags::empty()), Ok((1.., _))) {}
}
