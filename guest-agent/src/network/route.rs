//! Routes of an interface, in the main table.

use cloister_netlink::{Message, Netlink, Request, Result, u32_at};
use cloister_protocol::v1;

/// Bytes of `struct rtmsg`.
const FIXED: usize = 12;

/// The metric of an IPv6 route that names none (`IP6_RT_PRIO_USER`).
const METRIC_IPV6: u32 = 1024;

/// `RTNH_F_ONLINK` of the kernel's `rtnetlink.h`.
const ON_LINK: u32 = 4;

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    family: u8,
    /// Empty for the default route.
    destination: Vec<u8>,
    length: u8,
    gateway: Vec<u8>,
    source: Vec<u8>,
    metric: u32,
    /// 0 for every IPv6 route.
    scope: u8,
    on_link: bool,
}

/// Makes the interface's routes these and no others; those that the kernel makes itself are left to it.
pub fn set(netlink: &mut Netlink, index: u32, wanted: &[&v1::Route]) -> Result<()> {
    let mut wanted: Vec<Route> = wanted.iter().map(|route| Route::wanted(route)).collect();
    // A gateway must be reachable when its route is made.
    wanted.sort_by_key(|route| !route.gateway.is_empty());
    let present = list(netlink, index)?;
    for (route, kernel) in &present {
        if !kernel && !wanted.contains(route) {
            match netlink.change(route.request(libc::RTM_DELROUTE, 0, index)) {
                Err(e) if e.is(libc::ESRCH) => {} // went with its address
                other => other?,
            }
        }
    }
    for route in wanted.iter().filter(|route| !present.iter().any(|(found, _)| found == *route)) {
        netlink.change(route.request(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, index))?;
    }
    Ok(())
}

/// The unicast routes of the main table, and whether the kernel made them.
fn list(netlink: &mut Netlink, index: u32) -> Result<Vec<(Route, bool)>> {
    let messages = netlink.dump(Request::new(libc::RTM_GETROUTE, 0, &[0; FIXED]))?;
    let own = |message: &&Message| {
        let oif = message.attribute(FIXED, libc::RTA_OIF);
        message.kind == libc::RTM_NEWROUTE && oif == index.to_ne_bytes()
    };
    Ok(messages.iter().filter(own).filter_map(Route::read).collect())
}

impl Route {
    fn wanted(route: &v1::Route) -> Self {
        let destination = route.destination.clone().unwrap_or_default();
        let (family, scope, metric) = match route.family {
            4 => (libc::AF_INET as u8, u8::try_from(route.scope).unwrap_or_default(), route.metric),
            _ => (libc::AF_INET6 as u8, 0, if route.metric == 0 { METRIC_IPV6 } else { route.metric }),
        };
        let length = u8::try_from(destination.length).unwrap_or_default();
        let default = destination.address.is_empty() || length == 0;
        Self {
            family,
            destination: if default { Vec::new() } else { masked(destination.address, length) },
            length: if default { 0 } else { length },
            gateway: route.gateway.clone(),
            source: route.source.clone(),
            metric,
            scope,
            on_link: route.on_link && !route.gateway.is_empty(),
        }
    }

    fn read(message: &Message) -> Option<(Self, bool)> {
        let [family, length, _, _, table, protocol, scope, typ, ..] = message.body[..] else { return None };
        if table != libc::RT_TABLE_MAIN || typ != libc::RTN_UNICAST {
            return None;
        }
        let attribute = |kind| message.attribute(FIXED, kind).to_vec();
        let metric = message.attribute(FIXED, libc::RTA_PRIORITY);
        let route = Self {
            family,
            destination: attribute(libc::RTA_DST),
            length,
            gateway: attribute(libc::RTA_GATEWAY),
            source: attribute(libc::RTA_PREFSRC),
            metric: u32_at(metric, 0).unwrap_or_default(),
            scope: if i32::from(family) == libc::AF_INET6 { 0 } else { scope },
            on_link: u32_at(&message.body, 8)? & ON_LINK != 0,
        };
        // Router advertisements are the kernel's business too.
        Some((route, matches!(protocol, libc::RTPROT_KERNEL | 9 /* RTPROT_RA */)))
    }

    fn request(&self, kind: u16, flags: i32, index: u32) -> Request {
        let on_link = if self.on_link { ON_LINK } else { 0 };
        let mut fixed = [
            self.family,
            self.length,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            self.scope,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        fixed[8..].copy_from_slice(&on_link.to_ne_bytes());
        let mut request = Request::new(kind, flags, &fixed).with(libc::RTA_OIF, &index.to_ne_bytes());
        let addresses = [
            (libc::RTA_DST, &self.destination),
            (libc::RTA_GATEWAY, &self.gateway),
            (libc::RTA_PREFSRC, &self.source),
        ];
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
        let asked = v1::Route {
            destination: Some(v1::Prefix { address: vec![10, 244, 0, 0], length: 16 }),
            gateway: vec![10, 0, 0, 1],
            source: vec![10, 0, 0, 7],
            interface: "eth0".into(),
            family: 4,
            metric: 5,
            scope: 0,
            on_link: true,
        };
        let default = v1::Route { family: 6, gateway: vec![0xfe; 16], ..v1::Route::default() };
        for route in [Route::wanted(&asked), Route::wanted(&default)] {
            let message = route.request(libc::RTM_NEWROUTE, 0, 3).into_message().unwrap();
            assert_eq!(Route::read(&message), Some((route, false)));
        }
    }
}
