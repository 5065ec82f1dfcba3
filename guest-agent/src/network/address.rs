//! Addresses of an interface.

use cloister_netlink::{Message, Netlink, Request, Result, u32_at};
use cloister_protocol::v1::Prefix;

use super::family;

/// Bytes of `struct ifaddrmsg`.
const FIXED: usize = 8;

/// One address, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    bytes: Vec<u8>,
    length: u8,
}

/// Makes the interface's addresses these and no others, link-local ones that the kernel made excepted.
pub fn set(netlink: &mut Netlink, index: u32, wanted: &[Prefix]) -> Result<()> {
    let wanted: Vec<Address> = wanted
        .iter()
        .map(|prefix| Address {
            bytes: prefix.address.clone(),
            length: u8::try_from(prefix.length).unwrap_or(u8::MAX),
        })
        .collect();
    let present = list(netlink, index)?;
    for address in present.iter().filter(|address| !wanted.contains(address) && !address.is_link_local()) {
        netlink.change(address.request(libc::RTM_DELADDR, 0, index))?;
    }
    for address in wanted.iter().filter(|address| !present.contains(address)) {
        netlink.change(address.request(
            libc::RTM_NEWADDR,
            libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            index,
        ))?;
    }
    Ok(())
}

fn list(netlink: &mut Netlink, index: u32) -> Result<Vec<Address>> {
    let messages = netlink.dump(Request::new(libc::RTM_GETADDR, 0, &[0; FIXED]))?;
    let own =
        |message: &&Message| message.kind == libc::RTM_NEWADDR && u32_at(&message.body, 4) == Some(index);
    Ok(messages.iter().filter(own).map(read).collect())
}

fn read(message: &Message) -> Address {
    let local = message.attribute(FIXED, libc::IFA_LOCAL);
    let bytes = if local.is_empty() { message.attribute(FIXED, libc::IFA_ADDRESS) } else { local };
    Address { bytes: bytes.to_vec(), length: message.body.get(1).copied().unwrap_or(0) }
}

impl Address {
    /// fe80::/10.
    fn is_link_local(&self) -> bool {
        matches!(self.bytes[..], [0xfe, second, ..] if second & 0xc0 == 0x80 && self.bytes.len() == 16)
    }

    fn request(&self, kind: u16, flags: i32, index: u32) -> Request {
        // The request names the routes of the network as well, and a plugin may have made others than the kernel would.
        let mut kept = libc::IFA_F_NOPREFIXROUTE;
        if self.bytes.len() == 16 {
            // Duplicate address detection would hold the address back for a second; the host's side did it.
            kept |= libc::IFA_F_NODAD;
        }
        let mut fixed = [family(&self.bytes), self.length, 0, 0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&index.to_ne_bytes());
        let request = Request::new(kind, flags, &fixed)
            .with(libc::IFA_LOCAL, &self.bytes)
            .with(libc::IFA_ADDRESS, &self.bytes)
            .with(libc::IFA_FLAGS, &kept.to_ne_bytes());
        match self.broadcast() {
            Some(broadcast) => request.with(libc::IFA_BROADCAST, &broadcast),
            None => request,
        }
    }

    /// The last address of an IPv4 network that is larger than two.
    fn broadcast(&self) -> Option<[u8; 4]> {
        let address = u32::from_be_bytes(<[u8; 4]>::try_from(&self.bytes[..]).ok()?);
        (self.length < 31).then(|| (address | (u32::MAX >> self.length)).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_is_the_last_address() {
        let broadcast = |last, length| Address { bytes: vec![10, 1, 2, last], length }.broadcast();
        assert_eq!(broadcast(3, 24), Some([10, 1, 2, 255]));
        assert_eq!(broadcast(3, 0), Some([255; 4]));
        assert_eq!(broadcast(3, 31), None);
        assert_eq!(broadcast(3, 32), None);
        assert_eq!(Address { bytes: vec![0xfd; 16], length: 8 }.broadcast(), None);
    }

    #[test]
    fn link_local_is_ipv6_only() {
        let mut bytes = vec![0; 16];
        (bytes[0], bytes[1]) = (0xfe, 0x80);
        assert!(Address { bytes, length: 64 }.is_link_local());
        assert!(!Address { bytes: vec![0xfe, 0x80, 0, 1], length: 24 }.is_link_local());
    }
}
