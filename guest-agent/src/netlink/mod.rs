//! The part of rtnetlink(7) that the agent needs: a few requests, each answered before the next, without an executor.

mod message;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

pub use message::{Message, Request};

/// How long the kernel may take to answer; it answers before the request returns.
const DEADLINE: Duration = Duration::from_secs(5);

/// Bytes one answer of a dump may have (`NLMSG_GOODSIZE` and more).
const BUFFER: usize = 32 << 10;

/// A route netlink socket.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?; // NETLINK_ROUTE is 0
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a change.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, request: Request) -> io::Result<()> {
        self.exchange(request.acknowledged(), |_| {})
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&mut self, request: Request) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        self.exchange(request.dumped(), |message| messages.push(message))?;
        Ok(messages)
    }

    fn exchange(&mut self, request: Request, mut each: impl FnMut(Message)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &request.finish(self.sequence), SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for message in message::split(&buffer[..length]) {
                if message.sequence != self.sequence {
                    continue; // of a request that was given up
                }
                match message.end() {
                    Some(result) => return result,
                    None => each(message),
                }
            }
        }
    }
}
