//! Just enough netlink for two of its families: messages, attributes, acknowledgements, dumps (linux/netlink.h).
//!
//! Attributes are read one by one and unknown ones skipped, so that a newer kernel's never are an error. A request is
//! answered before `send` returns to us or within microseconds after, so blocking sockets suffice; they have a deadline.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// How long the kernel may take for one answer; it holds locks others may hold as well.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of `struct nlmsghdr`, and of the header of an attribute.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// Larger than any part of a dump the kernel sends.
const RECEIVE: usize = 64 << 10;
/// How often a dump is repeated because the tables changed meanwhile.
const ATTEMPTS: usize = 8;

/// A message under construction: `nlmsghdr`, the family's own header, attributes.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request that is acknowledged. `kind` and `flags` as in `nlmsghdr`; `header` is the family's structure.
    pub fn new(kind: u16, flags: libc::c_int, header: &[u8]) -> Self {
        Self::plain(kind, flags | libc::NLM_F_ACK, header)
    }

    /// A message that is not acknowledged: the marks around an nftables batch.
    pub fn plain(kind: u16, flags: libc::c_int, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 4, &kind.to_ne_bytes());
        put(&mut bytes, 6, &((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self(bytes).padded()
    }

    /// Appends an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTRIBUTE + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.padded()
    }

    /// Appends a name, with the zero that ends it.
    pub fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// Appends an attribute that holds what `content` appends.
    pub fn nest(mut self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        let mut nested = content(self);
        let length = (nested.0.len() - start) as u16;
        put(&mut nested.0, start, &length.to_ne_bytes());
        nested
    }

    fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn is_acknowledged(&self) -> bool {
        u16_at(&self.0, 6).is_some_and(|flags| i32::from(flags) & libc::NLM_F_ACK != 0)
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        put(&mut self.0, 0, &length.to_ne_bytes());
        put(&mut self.0, 8, &sequence.to_ne_bytes());
        self.0
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// A socket of one netlink family, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// One message received.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Socket {
    /// A socket for links, addresses, routes and traffic control.
    pub fn route() -> io::Result<Self> {
        // `NETLINK_ROUTE` is 0.
        Self::open(None)
    }

    /// A socket for nftables.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(LIMIT))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and waits until it is done.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message])
    }

    /// Sends requests as one and waits until they are done.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        let mut awaited = 0;
        for message in messages {
            self.sequence += 1;
            awaited += u32::from(message.is_acknowledged());
            bytes.extend(message.finish(self.sequence));
        }
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        let last = self.sequence;
        while awaited > 0 {
            self.receive(|message| {
                if (first..=last).contains(&message.sequence) && i32::from(message.kind) == libc::NLMSG_ERROR
                {
                    failure(message.payload)?;
                    awaited -= 1;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads a table: the kind and content of each of its entries.
    pub fn dump(&mut self, kind: u16, header: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        for _ in 0..ATTEMPTS {
            self.sequence += 1;
            let wanted = self.sequence;
            let request = Message::plain(kind, libc::NLM_F_DUMP, header).finish(wanted);
            rustix::net::send(&self.fd, &request, SendFlags::empty())?;
            let (mut entries, mut done, mut torn) = (Vec::new(), false, false);
            while !done {
                self.receive(|message| {
                    if message.sequence != wanted {
                        return Ok(());
                    }
                    torn |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                    match i32::from(message.kind) {
                        libc::NLMSG_DONE => done = true,
                        libc::NLMSG_ERROR => failure(message.payload)?,
                        _ => entries.push((message.kind, message.payload.to_vec())),
                    }
                    Ok(())
                })?;
            }
            if !torn {
                return Ok(entries);
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the table changes faster than it can be read"))
    }

    /// Hands each message of one datagram to `each`.
    fn receive(&self, mut each: impl FnMut(Received<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; RECEIVE];
        let (length, _) = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            other => other?,
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(total) = u32_at(rest, 0).map(|n| n as usize).filter(|&n| n >= HEADER) {
            let payload = rest.get(HEADER..total).ok_or(io::ErrorKind::InvalidData)?;
            each(Received {
                kind: u16_at(rest, 4).unwrap_or_default(),
                flags: u16_at(rest, 6).unwrap_or_default(),
                sequence: u32_at(rest, 8).unwrap_or_default(),
                payload,
            })?;
            rest = rest.get(total.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// `struct nlmsgerr`: a negative error number, or zero.
fn failure(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The attributes in `bytes`, each with its kind (without the flags in it) and its value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attributes after a family's header of `header` bytes.
pub(crate) fn after(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(payload.get(header..).unwrap_or_default())
}

/// A value in the machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A value in the machine's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A name without the zero that ends it.
pub(crate) fn name(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_written() {
        let message = Message::new(1, 0, &[0; 4])
            .with_name(3, "abc")
            .nest(4, |m| m.with(5, &[1]).with(6, &[]))
            .with(7, &7u32.to_ne_bytes())
            .finish(9);
        assert_eq!(u32_at(&message, 0), Some(message.len() as u32));
        let read: Vec<_> = after(&message, HEADER + 4).collect();
        assert_eq!(read.iter().map(|a| a.0).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(name(read[0].1), "abc");
        assert_eq!(attributes(read[1].1).collect::<Vec<_>>(), [(5, &[1u8][..]), (6, &[][..])]);
        assert_eq!(u32_at(read[2].1, 0), Some(7));
    }

    #[test]
    fn cut_off_attributes_end_the_list() {
        assert_eq!(attributes(&[9, 0, 1, 0, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[1]).count(), 0);
    }
}
