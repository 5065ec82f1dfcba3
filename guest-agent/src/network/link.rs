//! Interfaces: found by hardware address, renamed, sized, brought up.

use std::fs;

use cloister_netlink::{Message, Netlink, Request, Result as Answer, name, u32_at};
use cloister_protocol::v1;

use crate::error::{Context, Result};
use crate::rootfs::wait_for;

/// Bytes of `struct ifinfomsg`.
const FIXED: usize = 16;

/// One interface, as the kernel lists it.
struct Link {
    index: u32,
    name: String,
    mac: Vec<u8>,
}

/// Finds an interface, names it and sets its MTU; gives its index.
pub fn prepare(netlink: &mut Netlink, wanted: &v1::Interface) -> Result<u32> {
    let mac: Vec<String> = wanted.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let found = wait_for(&format!("network interface {} ({})", wanted.name, mac.join(":")), || {
        let links = list(netlink).context(|| "list the network interfaces".into())?;
        Ok(links.into_iter().find(|link| link.mac == wanted.mac))
    })?;
    let index = found.index;
    if found.name != wanted.name {
        let what = || format!("rename interface {} to {}", found.name, wanted.name);
        make_way(netlink, &wanted.name).context(what)?;
        rename(netlink, index, &wanted.name).context(what)?;
    }
    if wanted.mtu > 0 {
        let request = change(index).with(libc::IFLA_MTU, &wanted.mtu.to_ne_bytes());
        netlink.change(request).context(|| format!("set the MTU of {} to {}", wanted.name, wanted.mtu))?;
    }
    // Its addresses were tested on the host's side of the link; without IPv6 in the kernel there is no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_dad", wanted.name), "0");
    Ok(index)
}

/// Brings an interface up.
pub fn up(netlink: &mut Netlink, index: u32) -> Answer<()> {
    netlink.change(Request::new(libc::RTM_NEWLINK, 0, &info(index, libc::IFF_UP as u32)))
}

/// Another interface that has the name gets one that nobody asks for.
fn make_way(netlink: &mut Netlink, name: &str) -> Answer<()> {
    match list(netlink)?.into_iter().find(|link| link.name == name) {
        Some(holder) => rename(netlink, holder.index, &format!("was{}", holder.index)),
        None => Ok(()),
    }
}

/// Older kernels rename only what is down.
fn rename(netlink: &mut Netlink, index: u32, name: &str) -> Answer<()> {
    let request = || change(index).with_name(libc::IFLA_IFNAME, name);
    match netlink.change(request()) {
        Err(e) if e.is(libc::EBUSY) => {
            netlink.change(Request::new(libc::RTM_NEWLINK, 0, &info(index, 0)))?;
            netlink.change(request())
        }
        other => other,
    }
}

fn change(index: u32) -> Request {
    let mut fixed = [0; FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &fixed)
}

/// `struct ifinfomsg` that sets or clears IFF_UP.
fn info(index: u32, flags: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    fixed
}

fn list(netlink: &mut Netlink) -> Answer<Vec<Link>> {
    let messages = netlink.dump(Request::new(libc::RTM_GETLINK, 0, &[0; FIXED]))?;
    Ok(messages.iter().filter(|message| message.kind == libc::RTM_NEWLINK).map(read).collect())
}

fn read(message: &Message) -> Link {
    Link {
        index: u32_at(&message.body, 4).unwrap_or_default(),
        name: name(message.attribute(FIXED, libc::IFLA_IFNAME)),
        mac: message.attribute(FIXED, libc::IFLA_ADDRESS).to_vec(),
    }
}
