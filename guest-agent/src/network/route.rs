//! Routes by the interfaces of the pod, in the main table.

mod hop;

use std::collections::HashMap;

use cloister_netlink::{Message, Netlink, Request, Result, u32_at};
use cloister_protocol::v1;

use hop::{Hop, ON_LINK};

/// Bytes of `struct rtmsg`.
const FIXED: usize = 12;

/// The metric of an IPv6 route that names none (`IP6_RT_PRIO_USER`).
const METRIC_IPV6: u32 = 1024;

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    family: u8,
    /// Empty for the default route.
    destination: Vec<u8>,
    length: u8,
    source: Vec<u8>,
    metric: u32,
    /// 0 for every IPv6 route.
    scope: u8,
    /// One, or several for a multipath route.
    hops: Vec<Hop>,
}

/// Makes the routes by these interfaces, which have names and indexes, the wanted ones and no others; those that the
/// kernel makes itself are left to it.
pub fn set(netlink: &mut Netlink, indexes: &HashMap<&str, u32>, wanted: &[v1::Route]) -> Result<()> {
    let mut wanted: Vec<Route> = wanted.iter().map(|route| Route::wanted(route, indexes)).collect();
    // A gateway must be reachable when its route is made.
    wanted.sort_by_key(|route| route.hops.iter().any(|hop| !hop.gateway.is_empty()));
    let mut present = list(netlink)?;
    present
        .retain(|(route, _)| route.hops.iter().any(|hop| indexes.values().any(|&index| hop.index == index)));
    for (route, kernel) in &present {
        if !kernel && !wanted.contains(route) {
            match netlink.change(route.request(libc::RTM_DELROUTE, 0)) {
                Err(e) if e.is(libc::ESRCH) => {} // went with its address
                other => other?,
            }
        }
    }
    for route in wanted.iter().filter(|route| !present.iter().any(|(found, _)| found == *route)) {
        add(netlink, route)?;
    }
    Ok(())
}

/// Adds a route beside others of the same destination and metric, as two interfaces in one network have them.
fn add(netlink: &mut Netlink, route: &Route) -> Result<()> {
    netlink.change(route.request(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_APPEND))
}

/// The unicast routes of the main table, and whether the kernel made them.
fn list(netlink: &mut Netlink) -> Result<Vec<(Route, bool)>> {
    let messages = netlink.dump(Request::new(libc::RTM_GETROUTE, 0, &[0; FIXED]))?;
    Ok(messages.iter().filter(|message| message.kind == libc::RTM_NEWROUTE).filter_map(Route::read).collect())
}

impl Route {
    fn wanted(route: &v1::Route, indexes: &HashMap<&str, u32>) -> Self {
        let destination = route.destination.clone().unwrap_or_default();
        let (family, scope, metric) = match route.family {
            4 => (libc::AF_INET as u8, u8::try_from(route.scope).unwrap_or_default(), route.metric),
            _ => (libc::AF_INET6 as u8, 0, if route.metric == 0 { METRIC_IPV6 } else { route.metric }),
        };
        let length = u8::try_from(destination.length).unwrap_or_default();
        let default = destination.address.is_empty() || length == 0;
        let mut hops: Vec<Hop> = route.hops.iter().map(|hop| Hop::wanted(hop, indexes)).collect();
        if let [only] = &mut hops[..] {
            only.weight = 1;
        }
        Self {
            family,
            destination: if default { Vec::new() } else { masked(destination.address, length) },
            length: if default { 0 } else { length },
            source: route.source.clone(),
            metric,
            scope,
            hops,
        }
    }

    fn read(message: &Message) -> Option<(Self, bool)> {
        let [family, length, _, _, table, protocol, scope, typ] = *message.body.first_chunk()?;
        if table != libc::RT_TABLE_MAIN || typ != libc::RTN_UNICAST {
            return None;
        }
        let flags = u32_at(&message.body, 8)?;
        let ways = message.attribute(FIXED, libc::RTA_MULTIPATH);
        let route = Self {
            family,
            destination: message.attribute(FIXED, libc::RTA_DST).to_vec(),
            length,
            source: message.attribute(FIXED, libc::RTA_PREFSRC).to_vec(),
            metric: u32_at(message.attribute(FIXED, libc::RTA_PRIORITY), 0).unwrap_or_default(),
            scope: if i32::from(family) == libc::AF_INET6 { 0 } else { scope },
            hops: match u32_at(message.attribute(FIXED, libc::RTA_OIF), 0) {
                Some(index) => vec![Hop::read(index, flags & ON_LINK != 0, 1, message.attributes(FIXED))],
                None => Hop::all(ways),
            },
        };
        // Router advertisements are the kernel's business too.
        Some((route, matches!(protocol, libc::RTPROT_KERNEL | 9 /* RTPROT_RA */)))
    }

    fn request(&self, kind: u16, flags: i32) -> Request {
        let mut fixed = [0; FIXED];
        let rtmsg = [
            self.family,
            self.length,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            self.scope,
            libc::RTN_UNICAST,
        ];
        fixed[..8].copy_from_slice(&rtmsg);
        let mut request = match &self.hops[..] {
            [only] => {
                fixed[8] = only.flags();
                let request = Request::new(kind, flags, &fixed);
                only.gateway(request.with(libc::RTA_OIF, &only.index.to_ne_bytes()), self.family)
            }
            several => Request::new(kind, flags, &fixed).nest(libc::RTA_MULTIPATH, |request| {
                several.iter().fold(request, |request, hop| hop.append(request, self.family))
            }),
        };
        let addresses = [(libc::RTA_DST, &self.destination), (libc::RTA_PREFSRC, &self.source)];
        for (attribute, address) in addresses.into_iter().filter(|(_, address)| !address.is_empty()) {
            request = request.with(attribute, address);
        }
        if self.metric > 0 {
            request = request.with(libc::RTA_PRIORITY, &self.metric.to_ne_bytes());
        }
        request
    }
}

/// The kernel refuses IPv4 destinations with bits beyond their length.
fn masked(mut address: Vec<u8>, length: u8) -> Vec<u8> {
    for (position, byte) in address.iter_mut().enumerate() {
        let bits = usize::from(length).saturating_sub(position * 8).min(8);
        *byte &= u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0);
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_masked() {
        assert_eq!(masked(vec![10, 1, 2, 3], 24), [10, 1, 2, 0]);
        assert_eq!(masked(vec![10, 1, 2, 255], 26), [10, 1, 2, 192]);
        assert_eq!(masked(vec![10, 1, 2, 3], 32), [10, 1, 2, 3]);
        assert_eq!(masked(vec![0xff; 16], 9)[..3], [0xff, 0x80, 0]);
    }

    #[test]
    fn what_is_asked_for_reads_back_as_the_same_route() {
        let indexes = HashMap::from([("eth0", 3), ("net1", 4)]);
        let hop = |interface: &str, gateway: &[u8], on_link, weight| v1::NextHop {
            interface: interface.into(),
            gateway: gateway.into(),
            on_link,
            weight,
        };
        let to = |hops| v1::Route {
            destination: Some(v1::Prefix { address: vec![10, 244, 0, 0], length: 16 }),
            source: vec![10, 0, 0, 7],
            family: 4,
            metric: 5,
            scope: 0,
            hops,
        };
        let routes = [
            to(vec![hop("eth0", &[10, 0, 0, 1], true, 1)]),
            to(vec![hop("eth0", &[], false, 0)]),
            to(vec![hop("eth0", &[0xfe; 16], false, 7)]),
            to(vec![hop("eth0", &[10, 0, 0, 1], true, 256), hop("net1", &[0xfe; 16], false, 0)]),
            v1::Route { family: 6, hops: vec![hop("net1", &[0xfe; 16], true, 1)], ..v1::Route::default() },
            v1::Route {
                family: 6,
                hops: vec![hop("eth0", &[0xfe; 16], false, 1), hop("net1", &[0xfd; 16], false, 2)],
                ..v1::Route::default()
            },
        ];
        for route in routes {
            let route = Route::wanted(&route, &indexes);
            let message = route.request(libc::RTM_NEWROUTE, 0).into_message().unwrap();
            assert_eq!(Route::read(&message), Some((route, false)));
        }
    }
}
