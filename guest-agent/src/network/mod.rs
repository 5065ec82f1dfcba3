//! The guest's network, made what the host says. Called again with something else, it becomes that.

mod address;
mod link;
mod neighbour;
mod route;

use std::collections::HashMap;
use std::sync::Mutex;

use cloister_netlink::Netlink;
use cloister_protocol::{limits, v1};

use crate::error::{Context, Error, Result, lock};

/// One change at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Makes the network what `request` says; waits for interfaces that are still being plugged. Blocks.
///
/// # Errors
/// When the request makes no sense, an interface does not appear, or the kernel refuses something.
pub fn configure(request: &v1::ConfigureNetworkRequest) -> Result<()> {
    check(request)?;
    let _turn = lock(&TURN);
    let mut netlink = Netlink::route().context(|| "open a netlink socket".into())?;
    let mut indexes = HashMap::new();
    for interface in &request.interfaces {
        indexes.insert(interface.name.as_str(), link::prepare(&mut netlink, interface)?);
    }
    for interface in &request.interfaces {
        let index = indexes[interface.name.as_str()];
        let neighbours: Vec<_> =
            request.neighbours.iter().filter(|n| n.interface == interface.name).collect();
        let what = |what: &str| format!("set the {what} of {}", interface.name);
        address::set(&mut netlink, index, &interface.addresses).context(|| what("addresses"))?;
        link::up(&mut netlink, index).context(|| format!("bring {} up", interface.name))?;
        neighbour::set(&mut netlink, index, &neighbours).context(|| what("neighbours"))?;
    }
    // Last: a route may go by several interfaces.
    route::set(&mut netlink, &indexes, &request.routes).context(|| "set the routes".into())
}

fn check(request: &v1::ConfigureNetworkRequest) -> Result<()> {
    let interfaces = &request.interfaces;
    if interfaces.len() > limits::INTERFACES
        || [request.routes.len(), request.neighbours.len()].iter().any(|n| *n > limits::NETWORK_ENTRIES)
    {
        return Err(Error::invalid("a network of too many interfaces, routes or neighbours"));
    }
    for (position, interface) in interfaces.iter().enumerate() {
        let name = &interface.name;
        if !is_name(name) {
            return Err(Error::invalid(format!("{name:?} is no name of an interface")));
        }
        let twice = |other: &v1::Interface| other.name == *name || other.mac == interface.mac;
        if interfaces[..position].iter().any(twice) {
            return Err(Error::invalid(format!("interface {name} shares its name or address with another")));
        }
        if interface.mac.len() != 6 || interface.addresses.len() > limits::NETWORK_ENTRIES {
            return Err(Error::invalid(format!("interface {name} has no valid hardware address")));
        }
        if !interface.addresses.iter().all(is_prefix) {
            return Err(Error::invalid(format!("interface {name} has an address that is none")));
        }
    }
    let known = |name: &String| interfaces.iter().any(|interface| interface.name == *name);
    for route in &request.routes {
        let length = match route.family {
            4 => 4,
            6 => 16,
            other => return Err(Error::invalid(format!("a route of family {other}"))),
        };
        let fits = |address: &[u8]| address.is_empty() || address.len() == length;
        // An IPv4 route may go by an IPv6 gateway.
        let way = |hop: &v1::NextHop| {
            known(&hop.interface) && (fits(&hop.gateway) || hop.gateway.len() == 16) && hop.weight <= 256
        };
        let ways = (1..=limits::NEXT_HOPS).contains(&route.hops.len()) && route.hops.iter().all(way);
        let to = route.destination.as_ref();
        let destination = to.is_none_or(|to| to.address.is_empty() || fits(&to.address) && is_prefix(to));
        let scope = u8::try_from(route.scope).is_ok();
        if !(destination && scope && fits(&route.source) && ways) {
            let name = route.hops.first().map_or("", |hop| &hop.interface);
            return Err(Error::invalid(format!("a route of interface {name:?} is malformed")));
        }
    }
    for neighbour in &request.neighbours {
        let address = matches!(neighbour.address.len(), 4 | 16);
        if !(address && neighbour.mac.len() == 6 && known(&neighbour.interface)) {
            let name = &neighbour.interface;
            return Err(Error::invalid(format!("a neighbour of interface {name:?} is malformed")));
        }
    }
    Ok(())
}

/// What the kernel takes (`dev_valid_name()`), and the agent's own paths below /proc/sys can bear.
fn is_name(name: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@');
    !matches!(name, "" | "." | ".." | "lo" | "all" | "default")
        && name.len() <= limits::INTERFACE_BYTES
        && name.bytes().all(byte)
}

fn is_prefix(prefix: &v1::Prefix) -> bool {
    match prefix.address.len() {
        4 => prefix.length <= 32,
        16 => prefix.length <= 128,
        _ => false,
    }
}

/// The address family of an address's length.
fn family(address: &[u8]) -> u8 {
    if address.len() == 4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, last: u8) -> v1::Interface {
        let addresses = vec![v1::Prefix { address: vec![10, 0, 0, 1], length: 24 }];
        v1::Interface { name: name.into(), mac: vec![2, 0, 0, 0, 0, last], mtu: 1500, addresses }
    }

    fn request() -> v1::ConfigureNetworkRequest {
        v1::ConfigureNetworkRequest {
            interfaces: vec![interface("eth0", 1), interface("net1", 2)],
            routes: vec![v1::Route {
                family: 4,
                hops: vec![
                    v1::NextHop {
                        interface: "eth0".into(),
                        gateway: vec![10, 0, 0, 254],
                        ..v1::NextHop::default()
                    },
                    v1::NextHop {
                        interface: "net1".into(),
                        gateway: vec![0xfe; 16],
                        on_link: true,
                        weight: 9,
                    },
                ],
                ..v1::Route::default()
            }],
            neighbours: vec![v1::Neighbour {
                address: vec![10, 0, 0, 254],
                mac: vec![2; 6],
                interface: "eth0".into(),
            }],
        }
    }

    #[test]
    fn a_network_that_makes_sense_passes() {
        check(&request()).unwrap();
        check(&v1::ConfigureNetworkRequest::default()).unwrap();
    }

    #[test]
    fn malformed_networks_are_refused() {
        let bad: [fn(&mut v1::ConfigureNetworkRequest); 13] = [
            |r| r.interfaces[0].name = "../lo".into(),
            |r| r.interfaces[0].name = "lo".into(),
            |r| r.interfaces[1].name = "eth0".into(),
            |r| r.interfaces[1].mac = vec![1],
            |r| r.interfaces[0].addresses[0].length = 33,
            |r| r.interfaces[0].addresses[0].address = vec![1, 2, 3],
            |r| r.routes[0].family = 6,
            |r| r.routes[0].hops[0].interface = "eth7".into(),
            |r| r.routes[0].hops[1].gateway = vec![1; 5],
            |r| r.routes[0].hops[1].weight = 257,
            |r| r.routes[0].hops.clear(),
            |r| r.routes[0].scope = 256,
            |r| r.neighbours[0].mac = vec![],
        ];
        for (number, break_it) in bad.into_iter().enumerate() {
            let mut request = request();
            break_it(&mut request);
            assert!(check(&request).is_err(), "{number}");
        }
    }
}
