//! A tap beside each interface, joined by traffic control: whatever arrives on one leaves by the other.
//!
//! The redirection happens before the namespace's own IP stack sees a packet, so bridges, routes and limits on the
//! host's side of the interface act as they do for any pod. The filter is u32 with a key that always matches, since
//! not every kernel has `matchall`.

use std::io;
use std::os::fd::OwnedFd;

use cloister_netlink::{Netlink, Request, Result as Answer};

use crate::inspect::index_of;
use crate::interface::Interface;
use crate::tap;
use crate::{Error, Netns, Result};

/// `TC_H_INGRESS` and, for filters, `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, of linux/pkt_sched.h; the latter also
/// names the ingress of a `clsact` that somebody else put there.
const INGRESS: u32 = 0xffff_fff1;
/// The handle such a discipline has. Without it, one of somebody else would be replaced.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_FILTERS: u32 = 0xffff_fff2;
/// Our filter's priority (the upper half) for frames of every protocol (`ETH_P_ALL` in network order).
const FILTER_INFO: u32 = (1 << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;
/// `TCA_U32_SEL`, `TCA_U32_ACT` of linux/pkt_cls.h.
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`, `TCA_MIRRED_PARMS`.
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARAMETERS: u16 = 2;
/// `TC_ACT_STOLEN`, `TCA_EGRESS_REDIR`, `TC_U32_TERMINAL`.
const STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;
const TERMINAL: u8 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE` and its value `IN6_ADDR_GEN_MODE_NONE` of linux/if_link.h.
const ADDRESS_GENERATION: u16 = 8;
const NO_ADDRESS: u8 = 1;

/// Makes the taps of `interfaces` and joins each with its interface. The taps' descriptors come in the same order;
/// a tap vanishes when its last descriptor is closed. What an earlier attempt left is replaced.
///
/// # Errors
/// The kernel's reason, with the interface; everything done so far is then undone.
pub async fn mirror(netns: &Netns, interfaces: &[Interface]) -> Result<Vec<OwnedFd>> {
    let interfaces = interfaces.to_vec();
    let work = move || {
        let mut netlink = open()?;
        let mut taps = Vec::with_capacity(interfaces.len());
        for interface in &interfaces {
            take_apart(&mut netlink, interface)?;
            match join(&mut netlink, interface) {
                Ok(tap) => taps.push(tap),
                Err(error) => {
                    for done in &interfaces {
                        // The first error is the one to report.
                        let _ = take_apart(&mut netlink, done);
                    }
                    return Err(error);
                }
            }
        }
        Ok(taps)
    };
    netns.run(work).await
}

/// Removes the taps and the redirections of `interfaces`; those that are gone already are no error.
///
/// # Errors
/// The kernel's reason, with the interface.
pub async fn remove(netns: &Netns, interfaces: &[Interface]) -> Result<()> {
    let interfaces = interfaces.to_vec();
    let work = move || {
        let mut netlink = open()?;
        interfaces.iter().try_for_each(|interface| take_apart(&mut netlink, interface))
    };
    netns.run(work).await
}

fn open() -> Result<Netlink> {
    Netlink::route().map_err(Error::kernel("open", "a netlink socket"))
}

fn join(netlink: &mut Netlink, interface: &Interface) -> Result<OwnedFd> {
    let tap = &interface.tap;
    let fd = tap::create(tap).map_err(Error::kernel("make tap", tap))?;
    let index = index_of(netlink, tap).map_err(Error::kernel("find tap", tap))?;
    let index = index.ok_or(io::ErrorKind::NotFound).map_err(Error::kernel("find tap", tap))?;
    // Before it is up, so that it never has an address, or speaks.
    let quiet =
        |request: Request| request.nest(libc::AF_INET6 as u16, |m| m.with(ADDRESS_GENERATION, &[NO_ADDRESS]));
    match netlink.change(set_link(index, 0).nest(libc::IFLA_AF_SPEC, quiet)) {
        // The kernel has no IPv6, or it is off.
        Err(e) if e.is(libc::EAFNOSUPPORT) || e.is(libc::EINVAL) => {}
        other => other.map_err(Error::kernel("silence tap", tap))?,
    }
    let up = set_link(index, libc::IFF_UP).with(libc::IFLA_MTU, &interface.mtu.to_ne_bytes());
    netlink.change(up).map_err(Error::kernel("bring up tap", tap))?;
    for (from, to, name) in [(interface.index, index, &interface.name), (index, interface.index, tap)] {
        match netlink.change(ingress(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL, from)) {
            // A `clsact` of somebody else carries our filter as well.
            Err(e) if e.is(libc::EEXIST) => {}
            other => other.map_err(Error::kernel("add a queueing discipline to", name))?,
        }
        netlink.change(redirect(from, to)).map_err(Error::kernel("redirect the traffic of", name))?;
    }
    Ok(fd)
}

fn take_apart(netlink: &mut Netlink, interface: &Interface) -> Result<()> {
    let gone = |outcome: Answer<()>| match outcome {
        // EINVAL: there is no such discipline, or it is another's.
        Err(e) if [libc::ENODEV, libc::ENOENT, libc::EINVAL].iter().any(|&errno| e.is(errno)) => Ok(()),
        other => other,
    };
    let filter = traffic(libc::RTM_DELTFILTER, 0, interface.index, 0, INGRESS_FILTERS, FILTER_INFO);
    gone(netlink.change(filter)).map_err(Error::kernel("end the redirection of", &interface.name))?;
    gone(netlink.change(ingress(libc::RTM_DELQDISC, 0, interface.index)))
        .map_err(Error::kernel("remove the queueing discipline of", &interface.name))?;
    let link = Request::new(libc::RTM_DELLINK, 0, &[0; 16]).with_name(libc::IFLA_IFNAME, &interface.tap);
    gone(netlink.change(link)).map_err(Error::kernel("remove tap", &interface.tap))
}

/// `RTM_NEWLINK` with an `ifinfomsg` that turns `flags` on.
fn set_link(index: u32, flags: libc::c_int) -> Request {
    let mut header = [0; 16];
    let fields = [index, flags.cast_unsigned(), flags.cast_unsigned()];
    for (place, field) in header.chunks_exact_mut(4).skip(1).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    Request::new(libc::RTM_NEWLINK, 0, &header)
}

/// A request about traffic control, with its `tcmsg`.
fn traffic(kind: u16, flags: libc::c_int, index: u32, handle: u32, parent: u32, info: u32) -> Request {
    let header: Vec<u8> =
        [0, index, handle, parent, info].iter().flat_map(|field| field.to_ne_bytes()).collect();
    Request::new(kind, flags, &header)
}

fn ingress(kind: u16, flags: libc::c_int, index: u32) -> Request {
    traffic(kind, flags, index, INGRESS_HANDLE, INGRESS, 0).with_name(libc::TCA_KIND, "ingress")
}

/// A filter that takes every frame arriving at `from` and sends it by `to`.
fn redirect(from: u32, to: u32) -> Request {
    // `tc_u32_sel`: one key, whose mask of zero matches everything.
    let mut selector = [0; 16 + 16];
    selector[0] = TERMINAL;
    selector[2] = 1;
    // `tc_mirred`: index, capabilities, action, references, bindings, direction, interface.
    let parameters: Vec<u8> =
        [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to].iter().flat_map(|field| field.to_ne_bytes()).collect();
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    traffic(libc::RTM_NEWTFILTER, flags, from, 0, INGRESS_FILTERS, FILTER_INFO)
        .with_name(libc::TCA_KIND, "u32")
        .nest(libc::TCA_OPTIONS, |m| {
            m.with(U32_SELECTOR, &selector).nest(U32_ACTIONS, |m| {
                m.nest(1, |m| {
                    m.with_name(ACTION_KIND, "mirred")
                        .nest(ACTION_OPTIONS, |m| m.with(MIRRED_PARAMETERS, &parameters))
                })
            })
        })
}
