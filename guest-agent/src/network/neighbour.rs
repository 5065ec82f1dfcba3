//! Neighbours that the host knows and the guest need not ask for.

use cloister_netlink::{Message, Netlink, Request, Result, u16_at, u32_at};
use cloister_protocol::v1;

use super::family;

/// Bytes of `struct ndmsg`.
const FIXED: usize = 12;

/// Makes the interface's permanent neighbours these and no others.
pub fn set(netlink: &mut Netlink, index: u32, wanted: &[&v1::Neighbour]) -> Result<()> {
    let messages = netlink.dump(Request::new(libc::RTM_GETNEIGH, 0, &[0; FIXED]))?;
    for message in messages.iter().filter(|message| is_permanent(message, index)) {
        let address = message.attribute(FIXED, libc::NDA_DST);
        if !wanted.iter().any(|neighbour| neighbour.address == address) {
            netlink.change(request(libc::RTM_DELNEIGH, 0, index, address))?;
        }
    }
    for neighbour in wanted {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let request = request(libc::RTM_NEWNEIGH, flags, index, &neighbour.address);
        netlink.change(request.with(libc::NDA_LLADDR, &neighbour.mac))?;
    }
    Ok(())
}

fn is_permanent(message: &Message, index: u32) -> bool {
    let family = message.body.first().copied().unwrap_or_default();
    let of_ip = [libc::AF_INET, libc::AF_INET6].contains(&i32::from(family));
    let permanent = u16_at(&message.body, 8) == Some(libc::NUD_PERMANENT);
    message.kind == libc::RTM_NEWNEIGH && of_ip && permanent && u32_at(&message.body, 4) == Some(index)
}

fn request(kind: u16, flags: i32, index: u32, address: &[u8]) -> Request {
    let mut fixed = [0; FIXED];
    fixed[0] = family(address);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    Request::new(kind, flags, &fixed).with(libc::NDA_DST, address)
}
