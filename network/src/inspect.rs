//! Reading what CNI plugins made in a namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cloister_netlink::{Attributes, Message, Netlink, Request, name, u16_at, u32_at};

use crate::interface::{Interface, Neighbour, NextHop, Prefix, Route};
use crate::{Error, Netns, Result};

/// Taps of ours are called this and the index of the interface they belong to.
pub(crate) const TAP_PREFIX: &str = "cltap";

/// Bytes of the families' headers: `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`, `rtnexthop`.
pub(crate) const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;
const NEXT_HOP: usize = 8;
/// `RTNH_F_ONLINK` of linux/rtnetlink.h.
const ON_LINK: u32 = 4;
/// `IFLA_LINKINFO` and, in it, `IFLA_INFO_KIND` of linux/if_link.h.
const INFO_KIND: u16 = 1;

/// Reads the interfaces of a pod: all Ethernet interfaces that are up, but those that belong to a bridge or bond, and
/// our own taps. Nothing is changed.
///
/// # Errors
/// The kernel's reason; an interface that is up and not Ethernet.
pub async fn inspect(netns: &Netns) -> Result<Vec<Interface>> {
    netns.run(read).await
}

fn read() -> Result<Vec<Interface>> {
    let mut netlink = Netlink::route().map_err(Error::kernel("open", "a netlink socket"))?;
    let mut read = |what: &'static str, kind: u16, header: usize| {
        netlink.dump(Request::new(kind, 0, &vec![0; header])).map_err(Error::kernel("list", what))
    };
    let mut found = BTreeMap::new();
    for message in read("interfaces", libc::RTM_GETLINK, LINK)? {
        if let Some(interface) = link(&message)? {
            found.insert(interface.index, interface);
        }
    }
    for message in read("addresses", libc::RTM_GETADDR, ADDRESS)? {
        if let Some((index, prefix)) = address(&message)
            && let Some(interface) = found.get_mut(&index)
        {
            interface.addresses.push(prefix);
        }
    }
    for message in read("routes", libc::RTM_GETROUTE, ROUTE)? {
        if let Some((route, indexes)) = route(&message) {
            keep(&mut found, route, &indexes);
        }
    }
    for message in read("neighbours", libc::RTM_GETNEIGH, NEIGHBOUR)? {
        if let Some((index, neighbour)) = neighbour(&message)
            && let Some(interface) = found.get_mut(&index)
        {
            interface.neighbours.push(neighbour);
        }
    }
    for interface in found.values_mut() {
        // A gateway must be reachable before a route by it is accepted.
        interface.routes.sort_by_key(|route| route.hops.iter().any(|hop| hop.gateway.is_some()));
    }
    Ok(found.into_values().collect())
}

/// Puts a route to the interface of its first way; ways by interfaces that are not mirrored are left out.
fn keep(found: &mut BTreeMap<u32, Interface>, mut route: Route, indexes: &[u32]) {
    let mut names = indexes.iter().map(|index| found.get(index).map(|interface| interface.name.clone()));
    route.hops.retain_mut(|hop| match names.next().flatten() {
        Some(name) => {
            hop.interface = name;
            true
        }
        None => false,
    });
    let first = indexes.iter().find(|index| found.contains_key(index));
    if let Some(interface) = first.and_then(|index| found.get_mut(index)) {
        interface.routes.push(route);
    }
}

/// An interface to mirror, if it is one.
fn link(message: &Message) -> Result<Option<Interface>> {
    let kind = u16_at(&message.body, 2).unwrap_or_default();
    let index = u32_at(&message.body, 4).unwrap_or_default();
    let flags = u32_at(&message.body, 8).unwrap_or_default().cast_signed();
    let mut interface = Interface {
        name: String::new(),
        index,
        tap: format!("{TAP_PREFIX}{index}"),
        mac: [0; 6],
        mtu: 0,
        addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
    };
    let (mut driver, mut mac, mut enslaved) = (String::new(), None, false);
    for (attribute, value) in message.attributes(LINK) {
        match attribute {
            libc::IFLA_IFNAME => interface.name = name(value),
            libc::IFLA_ADDRESS => mac = value.try_into().ok(),
            libc::IFLA_MTU => interface.mtu = u32_at(value, 0).unwrap_or_default(),
            libc::IFLA_MASTER => enslaved = true,
            libc::IFLA_LINKINFO => {
                driver = Attributes::after(value, 0)
                    .find(|a| a.0 == INFO_KIND)
                    .map(|a| name(a.1))
                    .unwrap_or_default();
            }
            _ => {}
        }
    }
    let ours = driver == "tun" && interface.name.starts_with(TAP_PREFIX);
    // Tunnel modules put an interface that is down into every namespace.
    if flags & libc::IFF_LOOPBACK != 0 || flags & libc::IFF_UP == 0 || enslaved || ours {
        return Ok(None);
    }
    match mac {
        Some(mac) if kind == libc::ARPHRD_ETHER => Ok(Some(Interface { mac, ..interface })),
        _ => {
            let kind = if driver.is_empty() { format!("of hardware type {kind}") } else { driver };
            Err(Error::Unsupported { name: interface.name, kind })
        }
    }
}

fn address(message: &Message) -> Option<(u32, Prefix)> {
    let length = *message.body.get(1)?;
    let index = u32_at(&message.body, 4)?;
    let (mut local, mut remote, mut flags) = (None, None, u32::from(*message.body.get(2)?));
    for (attribute, value) in message.attributes(ADDRESS) {
        match attribute {
            libc::IFA_LOCAL => local = ip(value),
            // The other end of a point-to-point address; without one, the address itself.
            libc::IFA_ADDRESS => remote = ip(value),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let address = local.or(remote)?;
    let usable = flags & libc::IFA_F_DADFAILED == 0 && !of_the_link(&address);
    usable.then_some((index, Prefix { address, length }))
}

/// A route, its ways without the names of their interfaces, and the indexes of these.
fn route(message: &Message) -> Option<(Route, Vec<u32>)> {
    let [family, length, _, _, table, _, scope, kind] = *message.body.first_chunk()?;
    let flags = u32_at(&message.body, 8)?;
    if kind != libc::RTN_UNICAST || flags & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let any = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(table);
    let destination = Prefix { address: any, length };
    let mut route = Route { destination, source: None, metric: 0, scope, hops: Vec::new() };
    let mut single = (None, None);
    let mut indexes = Vec::new();
    for (attribute, value) in message.attributes(ROUTE) {
        match attribute {
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_DST => route.destination.address = ip(value)?,
            libc::RTA_PREFSRC => route.source = ip(value),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            libc::RTA_OIF => single.0 = u32_at(value, 0),
            libc::RTA_GATEWAY | libc::RTA_VIA => single.1 = gateway(attribute, value),
            libc::RTA_MULTIPATH => (route.hops, indexes) = hops(value).unzip(),
            _ => {}
        }
    }
    if let (Some(index), gateway) = single
        && route.hops.is_empty()
    {
        route.hops.push(way(flags, 1, gateway));
        indexes.push(index);
    }
    let destination = &route.destination.address;
    let main = table == u32::from(libc::RT_TABLE_MAIN);
    (main && !of_the_link(destination) && !destination.is_multicast()).then_some((route, indexes))
}

/// The ways of a multipath route: `struct rtnexthop` after `struct rtnexthop`, each with attributes.
fn hops(mut rest: &[u8]) -> impl Iterator<Item = (NextHop, u32)> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let hop = rest.get(..length).filter(|hop| hop.len() >= NEXT_HOP)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let gateway = Attributes::after(hop, NEXT_HOP).find_map(|(kind, value)| gateway(kind, value));
        Some((way((*hop.get(2)?).into(), u16::from(*hop.get(3)?) + 1, gateway), u32_at(hop, 4)?))
    })
}

fn way(flags: u32, weight: u16, gateway: Option<IpAddr>) -> NextHop {
    NextHop { interface: String::new(), gateway, on_link: flags & ON_LINK != 0, weight }
}

fn gateway(attribute: u16, value: &[u8]) -> Option<IpAddr> {
    match attribute {
        libc::RTA_GATEWAY => ip(value),
        // `struct rtvia`: the family, then the address.
        libc::RTA_VIA => ip(value.get(2..)?),
        _ => None,
    }
}

fn neighbour(message: &Message) -> Option<(u32, Neighbour)> {
    let index = u32_at(&message.body, 4)?;
    let state = u16_at(&message.body, 8)?;
    let flags = *message.body.get(10)?;
    if state & libc::NUD_PERMANENT == 0 || flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (attribute, value) in message.attributes(NEIGHBOUR) {
        match attribute {
            libc::NDA_DST => address = ip(value),
            libc::NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some((index, Neighbour { address: address?, mac: mac? }))
}

/// An IPv6 address that every interface has of its own.
fn of_the_link(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// The index of an interface of this thread's namespace, by name.
pub(crate) fn index_of(netlink: &mut Netlink, wanted: &str) -> io::Result<Option<u32>> {
    let links = netlink.dump(Request::new(libc::RTM_GETLINK, 0, &[0; LINK]))?;
    let found = links.iter().find(|link| name(link.attribute(LINK, libc::IFLA_IFNAME)) == wanted);
    Ok(found.and_then(|link| u32_at(&link.body, 4)))
}
