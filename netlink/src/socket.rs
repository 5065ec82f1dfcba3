//! A socket of one netlink family, and requests over it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::{Error, Message, Request, Result};

/// How long the kernel may take for one answer; it holds locks that others may hold as well.
const DEADLINE: Duration = Duration::from_secs(10);
/// Larger than any datagram the kernel makes for a dump.
const DATAGRAM: usize = 64 << 10;
/// Bytes of all answers to one request: some hundred thousand routes.
const ANSWERS: usize = 16 << 20;
/// How often a table is read because it changed meanwhile.
const ATTEMPTS: usize = 8;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// For links, addresses, routes and traffic control (rtnetlink(7)).
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn route() -> Result<Self> {
        Self::open(None) // `NETLINK_ROUTE` is 0
    }

    /// For nftables.
    ///
    /// # Errors
    /// The socket cannot be opened; the kernel has no netfilter.
    pub fn netfilter() -> Result<Self> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self> {
        let open = || {
            let socket =
                socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            // To the kernel: whoever else has `CAP_NET_ADMIN` here could send us answers otherwise.
            connect(&socket, &SocketAddrNetlink::new(0, 0))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
            Ok(Self { socket, sequence: 0 })
        };
        open().map_err(Error::socket)
    }

    /// Makes a change.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, request: Request) -> Result<()> {
        self.batch(vec![request.acknowledged()])
    }

    /// Sends requests as one and waits for those that are [acknowledged](Request::acknowledged).
    ///
    /// # Errors
    /// The kernel's first.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<()> {
        let awaited = requests.iter().filter(|request| request.is_acknowledged()).count();
        let first = self.send(requests)?;
        if awaited == 0 {
            return Ok(());
        }
        let mut ended = 0;
        let mut result = Ok(());
        self.receive(first, |message| {
            if let Some(end) = message.end() {
                ended += 1;
                result = std::mem::replace(&mut result, Ok(())).and(end);
            }
            // A batch that failed need not answer every request of it.
            Ok(ended >= awaited || result.is_err())
        })?;
        result
    }

    /// Asks for a list, again when it changed while it was read.
    ///
    /// # Errors
    /// The kernel's; a list that changes all the time, or is larger than 16 MiB.
    pub fn dump(&mut self, request: Request) -> Result<Vec<Message>> {
        let request = request.dumped();
        for _ in 0..ATTEMPTS {
            let first = self.send(vec![request.clone()])?;
            let (mut messages, mut interrupted) = (Vec::new(), false);
            self.receive(first, |message| {
                interrupted |= message.is_interrupted();
                match message.end() {
                    Some(end) => end.map(|()| true),
                    None => {
                        messages.push(message);
                        Ok(false)
                    }
                }
            })?;
            if !interrupted {
                return Ok(messages);
            }
        }
        Err(Error::Changing)
    }

    /// Sends requests in one datagram; the first one's number.
    fn send(&mut self, requests: Vec<Request>) -> Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(request.finish(self.sequence)?);
        }
        send(&self.socket, &bytes, SendFlags::empty()).map_err(Error::socket)?;
        Ok(first)
    }

    /// Hands every answer to the requests since `first` to `each`, until that says it was the last.
    fn receive(&self, first: u32, mut each: impl FnMut(Message) -> Result<bool>) -> Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        let mut bytes = 0;
        while bytes <= ANSWERS {
            // With TRUNC the length is the datagram's, not what fitted.
            let length = match recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(Error::TimedOut(DEADLINE.as_secs())),
                Err(error) => return Err(Error::socket(error)),
            };
            bytes += length;
            for message in Message::all(buffer.get(..length).ok_or(Error::Malformed)?)? {
                // Earlier ones belong to a request that was given up.
                let ours = message.sequence.wrapping_sub(first) <= self.sequence.wrapping_sub(first);
                if ours && each(message)? {
                    return Ok(());
                }
            }
        }
        Err(Error::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{name, u32_at};

    /// Bytes of `struct ifinfomsg`.
    const LINK: usize = 16;

    #[test]
    fn the_kernel_lists_its_interfaces() {
        let mut netlink = Netlink::route().unwrap();
        for _ in 0..2 {
            let links = netlink.dump(Request::new(libc::RTM_GETLINK, 0, &[0; LINK])).unwrap();
            let loopback = links.iter().find(|link| name(link.attribute(LINK, libc::IFLA_IFNAME)) == "lo");
            assert_eq!(u32_at(&loopback.unwrap().body, 4), Some(1));
        }
    }

    #[test]
    fn a_refusal_is_typed_and_the_socket_goes_on() {
        let mut netlink = Netlink::route().unwrap();
        let missing = || {
            let mut fixed = [0; LINK];
            fixed[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
            Request::new(libc::RTM_SETLINK, 0, &fixed)
        };
        let error = netlink.change(missing()).unwrap_err();
        assert!(error.is(libc::ENODEV) || error.is(libc::EPERM), "{error:?}");
        // Of a batch the first refusal is told, and what else was answered is not taken for the next request's.
        let batch = vec![missing().acknowledged(), missing(), missing().acknowledged()];
        assert_eq!(netlink.batch(batch).unwrap_err(), error);
        assert!(!netlink.dump(Request::new(libc::RTM_GETLINK, 0, &[0; LINK])).unwrap().is_empty());
    }

    #[test]
    fn a_batch_that_awaits_nothing_does_not_wait() {
        assert_eq!(
            Netlink::route().unwrap().batch(vec![Request::new(libc::RTM_GETLINK, 0, &[0; LINK])]),
            Ok(())
        );
    }
}
