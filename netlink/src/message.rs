//! Messages as `linux/netlink.h` lays them out, in the machine's byte order.

use crate::{Error, Result};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// Messages and attributes begin at multiples of this.
const ALIGNMENT: usize = 4;

/// A message to the kernel, under construction: the header, the family's own structure, attributes.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
    flags: i32,
    /// An attribute was longer than its length can say.
    too_large: bool,
}

impl Request {
    /// A request with the family's structure; `kind` and `flags` (`NLM_F_…`, beyond `NLM_F_REQUEST`) as in `nlmsghdr`.
    #[must_use]
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(fixed);
        Self { bytes, flags: flags | libc::NLM_F_REQUEST, too_large: false }.padded()
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |mut request| {
            request.bytes.extend(value);
            request
        })
    }

    /// Adds a name, with the zero that ends it.
    #[must_use]
    pub fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds what `content` adds.
    #[must_use]
    pub fn nest(self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        self.nested(kind | libc::NLA_F_NESTED as u16, content)
    }

    /// Adds a structure that begins with its own length in 16 bits and holds attributes behind its fixed part, as
    /// `struct rtnexthop` does.
    #[must_use]
    pub fn with_counted(mut self, fixed: &[u8], content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend(fixed);
        content(self.padded()).counted(start)
    }

    /// Asks the kernel to say how it ended; needed in a batch only.
    #[must_use]
    pub fn acknowledged(mut self) -> Self {
        self.flags |= libc::NLM_F_ACK;
        self
    }

    fn nested(mut self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        content(self).counted(start).padded()
    }

    /// Writes the length of what begins at `start` there.
    fn counted(mut self, start: usize) -> Self {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => put(&mut self.bytes, start, &length.to_ne_bytes()),
            Err(_) => self.too_large = true,
        }
        self
    }

    fn padded(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    pub(crate) fn dumped(mut self) -> Self {
        self.flags |= libc::NLM_F_DUMP;
        self
    }

    pub(crate) fn is_acknowledged(&self) -> bool {
        self.flags & libc::NLM_F_ACK != 0
    }

    pub(crate) fn finish(mut self, sequence: u32) -> Result<Vec<u8>> {
        let length = u32::try_from(self.bytes.len()).ok().filter(|_| !self.too_large);
        let flags = u16::try_from(self.flags).map_err(|_| Error::TooLarge)?;
        put(&mut self.bytes, 0, &length.ok_or(Error::TooLarge)?.to_ne_bytes());
        put(&mut self.bytes, 6, &flags.to_ne_bytes());
        put(&mut self.bytes, 8, &sequence.to_ne_bytes());
        Ok(self.bytes)
    }

    /// The message that the kernel would list something of this content as.
    ///
    /// # Errors
    /// An attribute is too large.
    pub fn into_message(self) -> Result<Message> {
        Message::all(&self.finish(0)?)?.pop().ok_or(Error::Malformed)
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is (`RTM_…`).
    pub kind: u16,
    /// All of it behind the header: the family's structure, then attributes.
    pub body: Vec<u8>,
    pub(crate) flags: u16,
    /// Of the request it answers.
    pub(crate) sequence: u32,
}

impl Message {
    /// The messages of one datagram.
    pub(crate) fn all(mut bytes: &[u8]) -> Result<Vec<Self>> {
        let mut messages = Vec::new();
        while let Some(length) = u32_at(bytes, 0) {
            let body = bytes.get(HEADER..length as usize).ok_or(Error::Malformed)?;
            messages.push(Self {
                kind: u16_at(bytes, 4).unwrap_or_default(),
                flags: u16_at(bytes, 6).unwrap_or_default(),
                sequence: u32_at(bytes, 8).unwrap_or_default(),
                body: body.to_vec(),
            });
            bytes = bytes.get((length as usize).next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        if bytes.is_empty() { Ok(messages) } else { Err(Error::Malformed) }
    }

    /// How a request ended, when this says so: an error number behind `NLMSG_ERROR` (0 for none), and behind
    /// `NLMSG_DONE` where a dump failed half-way.
    pub(crate) fn end(&self) -> Option<Result<()>> {
        let code = u32_at(&self.body, 0).map(u32::cast_signed);
        match (i32::from(self.kind), code) {
            (libc::NLMSG_DONE, None) | (libc::NLMSG_DONE | libc::NLMSG_ERROR, Some(0..)) => Some(Ok(())),
            (libc::NLMSG_DONE | libc::NLMSG_ERROR, Some(code)) => {
                Some(Err(Error::Refused(code.saturating_neg())))
            }
            (libc::NLMSG_ERROR, None) => Some(Err(Error::Malformed)),
            _ => None,
        }
    }

    /// Whether the table changed while it was listed.
    pub(crate) fn is_interrupted(&self) -> bool {
        i32::from(self.flags) & libc::NLM_F_DUMP_INTR != 0
    }

    /// The attributes behind a structure of `fixed` bytes.
    #[must_use]
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes::after(&self.body, fixed)
    }

    /// One attribute; empty when it is missing.
    #[must_use]
    pub fn attribute(&self, fixed: usize, kind: u16) -> &[u8] {
        self.attributes(fixed).find(|(found, _)| *found == kind).map_or(&[], |(_, value)| value)
    }
}

/// Attributes, each with its kind (without the flags in it) and its value. One that is cut off ends them.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those behind a structure of `fixed` bytes; of the value of an attribute that holds others, 0.
    #[must_use]
    pub fn after(bytes: &'a [u8], fixed: usize) -> Self {
        Self(bytes.get(fixed..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A number in the machine's order.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the machine's order.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A name without the zero that ends it.
#[must_use]
pub fn name(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Request {
        Request::new(20, libc::NLM_F_CREATE, &[1, 2, 3, 4])
            .with_name(3, "abc")
            .nest(4, |request| request.with(5, &[1]).with(6, &[]))
            .with_counted(&[0, 0, 9, 9], |request| request.with(7, &[7; 4]))
    }

    fn message(kind: i32, body: &[u8]) -> Message {
        Message { kind: kind as u16, flags: 0, sequence: 0, body: body.to_vec() }
    }

    #[test]
    fn what_is_written_reads_back() {
        let message = request().into_message().unwrap();
        assert_eq!((message.kind, &message.body[..4]), (20, &[1, 2, 3, 4][..]));
        let read: Vec<_> = message.attributes(4).collect();
        assert_eq!(read[..2].iter().map(|a| a.0).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(name(read[0].1), "abc");
        let nested: Vec<_> = Attributes::after(read[1].1, 0).collect();
        assert_eq!(nested, [(5, &[1u8][..]), (6, &[][..])]);
        let counted = &message.body[4 + 8 + 4 + 8 + 4..];
        assert_eq!((u16_at(counted, 0), counted.len()), (Some(12), 12));
        assert_eq!(Attributes::after(counted, 4).collect::<Vec<_>>(), [(7, &[7; 4][..])]);
        assert_eq!(message.attribute(4, 99), b"");
        assert_eq!(message.end(), None);
    }

    #[test]
    fn several_messages_of_a_datagram_are_apart() {
        let mut bytes = request().finish(7).unwrap();
        bytes.extend(request().acknowledged().finish(8).unwrap());
        let messages = Message::all(&bytes).unwrap();
        assert_eq!(messages.iter().map(|message| message.sequence).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(messages[0].body, messages[1].body);
        assert_eq!(i32::from(messages[1].flags), libc::NLM_F_REQUEST | libc::NLM_F_CREATE | libc::NLM_F_ACK);
    }

    #[test]
    fn torn_messages_are_refused() {
        let bytes = request().finish(1).unwrap();
        for length in 1..bytes.len() {
            assert_eq!(Message::all(&bytes[..length]), Err(Error::Malformed), "{length}");
        }
        // A length that leaves out the header it is in would never end.
        for length in 0..HEADER as u32 {
            let bytes = [&length.to_ne_bytes()[..], &[0; 20]].concat();
            assert_eq!(Message::all(&bytes), Err(Error::Malformed), "{length}");
        }
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_list() {
        for bytes in [&[9, 0, 1, 0, 0][..], &[0, 0, 1, 0], &[2, 0, 1, 0], &[200, 0, 1, 0, 5], &[1]] {
            assert_eq!(Attributes::after(bytes, 0).count(), 0, "{bytes:?}");
        }
        assert_eq!(Attributes::after(&[1, 2], 5).count(), 0);
    }

    #[test]
    fn an_attribute_that_is_too_large_is_never_sent() {
        let with = |length: usize| Request::new(1, 0, &[]).with(1, &vec![0; length]).finish(1);
        assert!(with(65_531).is_ok());
        assert_eq!(with(65_532), Err(Error::TooLarge));
        let nested = Request::new(1, 0, &[]).nest(1, |r| r.with(1, &[0; 40_000]).with(2, &[0; 40_000]));
        assert_eq!(nested.finish(1), Err(Error::TooLarge));
    }

    #[test]
    fn ends_are_the_kernels() {
        assert_eq!(message(libc::NLMSG_ERROR, &0i32.to_ne_bytes()).end(), Some(Ok(())));
        let refused = message(libc::NLMSG_ERROR, &(-libc::EEXIST).to_ne_bytes()).end().unwrap().unwrap_err();
        assert!(refused.is(libc::EEXIST));
        assert_eq!(std::io::Error::from(refused).raw_os_error(), Some(libc::EEXIST));
        assert_eq!(message(libc::NLMSG_ERROR, &[1]).end(), Some(Err(Error::Malformed)));
        assert_eq!(message(libc::NLMSG_DONE, &[]).end(), Some(Ok(())));
        let half = message(libc::NLMSG_DONE, &(-libc::EMSGSIZE).to_ne_bytes()).end();
        assert_eq!(half, Some(Err(Error::Refused(libc::EMSGSIZE))));
        assert_eq!(
            message(libc::NLMSG_ERROR, &i32::MIN.to_ne_bytes()).end(),
            Some(Err(Error::Refused(i32::MAX)))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let read: usize = Message::all(&bytes).into_iter().flatten().map(|m| HEADER + m.body.len()).sum();
            prop_assert!(read <= bytes.len());
            let values: usize = Attributes::after(&bytes, 0).map(|(_, value)| ATTRIBUTE + value.len()).sum();
            prop_assert!(values <= bytes.len());
        }
    }
}
