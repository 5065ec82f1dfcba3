//! What a guest must be given so that it stands where the pod's namespace stands.

use std::net::IpAddr;

/// One interface of the pod, and the tap that carries it into the VM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Interface {
    /// Its name in the namespace and in the guest, at most 15 bytes.
    pub name: String,
    /// Its index in the namespace.
    pub index: u32,
    /// The name of its tap, which follows from the index.
    pub tap: String,
    /// Its hardware address; the guest's device has the same.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// IPv4 and IPv6, without those of the link (`fe80::/10`), which the guest makes itself.
    pub addresses: Vec<Prefix>,
    /// Unicast routes of the main table, those without a gateway first; one by several interfaces is with its first. Routes the kernel made with an address are
    /// among them (a plugin may have taken them away), so addresses are to be set with `IFA_F_NOPREFIXROUTE`.
    pub routes: Vec<Route>,
    /// Permanent entries of the neighbour tables.
    pub neighbours: Vec<Neighbour>,
}

/// An address with the length of its network, or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that name the network.
    pub length: u8,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` for the default.
    pub destination: Prefix,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// 0 for the kernel's default.
    pub metric: u32,
    /// `RT_SCOPE_*` of linux/rtnetlink.h.
    pub scope: u8,
    /// One, or several for a multipath route; only ways by mirrored interfaces.
    pub hops: Vec<NextHop>,
}

/// One way of a route.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextHop {
    /// The name of its interface.
    pub interface: String,
    /// None for a route on the link. An IPv4 route may go by an IPv6 gateway (`RTA_VIA`).
    pub gateway: Option<IpAddr>,
    /// The gateway need not be in a network of the interface (`RTNH_F_ONLINK`).
    pub on_link: bool,
    /// Share of the traffic among several, 1 to 256.
    pub weight: u16,
}

/// An address whose hardware address is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Neighbour {
    /// IPv4 or IPv6.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
}
