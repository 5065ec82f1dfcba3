//! The pod's network: what CNI plugins made, given to the machine and its guest.

use std::net::IpAddr;

use cloister_network::{Interface, Netns, Prefix};
use cloister_protocol::v1;
use cloister_vmm::Tap;

use crate::failure::{Failure, Result};

/// Interfaces joined with taps.
pub struct Mirrored {
    /// The pod's namespace.
    pub netns: Netns,
    /// What the guest gets.
    pub interfaces: Vec<Interface>,
    /// For the machine, in the order of the interfaces.
    pub taps: Vec<Tap>,
}

/// Joins the interfaces of a namespace with taps; `plan` hears their names before they are made.
///
/// # Errors
/// The kernel's reason, or that of `plan`.
pub async fn mirror(netns: Netns, plan: impl FnOnce(Vec<String>) -> anyhow::Result<()>) -> Result<Mirrored> {
    let interfaces = cloister_network::inspect(&netns).await.map_err(Failure::other)?;
    plan(interfaces.iter().map(|interface| interface.tap.clone()).collect())?;
    let fds = cloister_network::mirror(&netns, &interfaces).await.map_err(Failure::other)?;
    let taps = interfaces.iter().zip(fds).map(|(interface, fd)| Tap { fd, mac: interface.mac }).collect();
    Ok(Mirrored { netns, interfaces, taps })
}

/// The agent's request for these interfaces.
pub fn request(interfaces: &[Interface]) -> v1::ConfigureNetworkRequest {
    let mut request = v1::ConfigureNetworkRequest::default();
    for interface in interfaces {
        request.interfaces.push(v1::Interface {
            name: interface.name.clone(),
            mac: interface.mac.to_vec(),
            mtu: interface.mtu,
            addresses: interface.addresses.iter().map(prefix).collect(),
        });
        request.routes.extend(interface.routes.iter().map(|route| {
            v1::Route {
                // The default route has no destination.
                destination: Some(match route.destination.length {
                    0 => v1::Prefix::default(),
                    _ => prefix(&route.destination),
                }),
                source: route.source.map(octets).unwrap_or_default(),
                family: if route.destination.address.is_ipv4() { 4 } else { 6 },
                metric: route.metric,
                scope: route.scope.into(),
                hops: route
                    .hops
                    .iter()
                    .map(|hop| v1::NextHop {
                        interface: hop.interface.clone(),
                        gateway: hop.gateway.map(octets).unwrap_or_default(),
                        on_link: hop.on_link,
                        weight: hop.weight.into(),
                    })
                    .collect(),
            }
        }));
        request.neighbours.extend(interface.neighbours.iter().map(|neighbour| v1::Neighbour {
            address: octets(neighbour.address),
            mac: neighbour.mac.to_vec(),
            interface: interface.name.clone(),
        }));
    }
    request
}

fn prefix(prefix: &Prefix) -> v1::Prefix {
    v1::Prefix { address: octets(prefix.address), length: prefix.length.into() }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use cloister_network::{NextHop, Route};

    use super::*;

    #[test]
    fn a_default_route_has_no_destination_and_keeps_its_family() {
        let any = |text: &str| Prefix { address: text.parse().unwrap(), length: 0 };
        let route = |destination, gateway: &str| Route {
            destination,
            source: None,
            metric: 0,
            scope: 0,
            hops: vec![NextHop {
                interface: "eth0".into(),
                gateway: Some(gateway.parse().unwrap()),
                on_link: false,
                weight: 1,
            }],
        };
        let interface = Interface {
            name: "eth0".into(),
            index: 2,
            tap: "cltap2".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec![Prefix { address: "10.1.0.2".parse().unwrap(), length: 24 }],
            routes: vec![route(any("0.0.0.0"), "10.1.0.1"), route(any("::"), "fd00::1")],
            neighbours: Vec::new(),
        };
        let request = request(&[interface]);
        assert_eq!(request.interfaces[0].addresses[0].length, 24);
        let families: Vec<u32> = request.routes.iter().map(|route| route.family).collect();
        assert_eq!(families, [4, 6]);
        assert!(request.routes.iter().all(|route| route.destination.as_ref().unwrap().address.is_empty()));
    }
}
