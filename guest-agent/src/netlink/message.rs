//! Messages as `linux/netlink.h` lays them out, in the machine's byte order.

use std::io;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A message to the kernel.
pub struct Request {
    bytes: Vec<u8>,
}

/// A message from the kernel.
pub struct Message {
    /// What it is (`RTM_…`).
    pub kind: u16,
    /// Of the request it answers.
    pub sequence: u32,
    /// All of it behind the header.
    pub body: Vec<u8>,
}

/// The attributes behind a message's fixed part.
pub struct Attributes<'a>(&'a [u8]);

impl Request {
    /// A request with its fixed part; `flags` are `NLM_F_…` beyond the usual.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self
    }

    pub(super) fn acknowledged(self) -> Self {
        self.flag(libc::NLM_F_ACK)
    }

    pub(super) fn dumped(self) -> Self {
        self.flag(libc::NLM_F_DUMP)
    }

    fn flag(mut self, flag: i32) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | u16::try_from(flag).unwrap_or(0);
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    /// What a message of the same content has as its body.
    #[cfg(test)]
    pub fn into_body(self) -> Vec<u8> {
        self.bytes[HEADER..].to_vec()
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

impl Message {
    /// How a request ended, when this says so.
    pub(super) fn end(&self) -> Option<io::Result<()>> {
        match self.kind {
            NLMSG_DONE => Some(Ok(())),
            NLMSG_ERROR => {
                let error = self.body.first_chunk().map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(*bytes));
                Some(if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) })
            }
            _ => None,
        }
    }

    /// The attributes behind a fixed part of `fixed` bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.body.get(fixed..).unwrap_or_default())
    }

    /// One attribute; empty when it is missing.
    pub fn attribute(&self, fixed: usize, kind: u16) -> &[u8] {
        self.attributes(fixed).find(|(found, _)| *found == kind).map_or(&[], |(_, value)| value)
    }

    /// A number of the fixed part.
    pub fn number(&self, offset: usize) -> u32 {
        self.body
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1, ..] = *self.0 else { return None };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value)) // NLA_TYPE_MASK
    }
}

/// The messages of one datagram.
pub(super) fn split(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        messages.push(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body: body.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let request = Request::new(20, libc::NLM_F_CREATE, &[1, 2, 3, 4]).with(1, b"eth0\0").with(4, &[9; 4]);
        let bytes = request.acknowledged().finish(7);
        let [message] = &split(&bytes)[..] else { panic!("one message") };
        assert_eq!((message.kind, message.sequence), (20, 7));
        let attributes: Vec<_> = message.attributes(4).collect();
        assert_eq!(attributes, [(1, &b"eth0\0"[..]), (4, &[9; 4][..])]);
        assert_eq!(message.attribute(4, 5), b"");
        assert!(message.end().is_none());
    }

    #[test]
    fn torn_messages_end_the_list() {
        let bytes = Request::new(20, 0, &[0; 4]).with(1, b"abc").finish(1);
        for length in 0..bytes.len() {
            assert!(split(&bytes[..length]).is_empty(), "{length}");
        }
        assert_eq!(Attributes(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[200, 0, 1, 0, 5]).count(), 0);
    }

    #[test]
    fn errors_are_the_kernels() {
        let message =
            |error: i32| Message { kind: NLMSG_ERROR, sequence: 0, body: error.to_ne_bytes().into() };
        assert!(message(0).end().unwrap().is_ok());
        let error = message(-libc::EEXIST).end().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    }
}
