//! One way of a route, alone or among several.

use std::collections::HashMap;

use cloister_netlink::{Attributes, Request, u16_at, u32_at};
use cloister_protocol::v1;

use crate::network::family;

/// `RTNH_F_ONLINK` of the kernel's `rtnetlink.h`.
pub const ON_LINK: u32 = 4;

/// Bytes of `struct rtnexthop`: length, flags, weight, index.
const FIXED: usize = 8;

/// One way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The index of its interface.
    pub index: u32,
    /// Empty for a route on the link.
    pub gateway: Vec<u8>,
    /// The gateway need not be in a network of the interface.
    pub on_link: bool,
    /// 1 to 256; 1 for the only way.
    pub weight: u32,
}

impl Hop {
    pub fn wanted(hop: &v1::NextHop, indexes: &HashMap<&str, u32>) -> Self {
        Self {
            index: indexes.get(hop.interface.as_str()).copied().unwrap_or_default(),
            gateway: hop.gateway.clone(),
            on_link: hop.on_link && !hop.gateway.is_empty(),
            weight: hop.weight.max(1),
        }
    }

    /// A way whose gateway is among these attributes.
    pub fn read(index: u32, on_link: bool, weight: u32, mut attributes: Attributes<'_>) -> Self {
        let gateway = attributes.find_map(|(kind, value)| match kind {
            libc::RTA_GATEWAY => Some(value),
            libc::RTA_VIA => value.get(2..),
            _ => None,
        });
        Self { index, gateway: gateway.unwrap_or_default().to_vec(), on_link, weight }
    }

    /// The ways of `RTA_MULTIPATH`.
    pub fn all(mut rest: &[u8]) -> Vec<Self> {
        let mut hops = Vec::new();
        while let (Some(length), Some(index)) = (u16_at(rest, 0).map(usize::from), u32_at(rest, 4)) {
            let Some(hop @ [_, _, flags, weight, ..]) = rest.get(..length) else { break };
            let on_link = u32::from(*flags) & ON_LINK != 0;
            hops.push(Self::read(index, on_link, u32::from(*weight) + 1, Attributes::after(hop, FIXED)));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        hops
    }

    /// Adds the way to `RTA_MULTIPATH`.
    pub fn append(&self, request: Request, of: u8) -> Request {
        let weight = u8::try_from(self.weight.saturating_sub(1)).unwrap_or(u8::MAX);
        let mut fixed = [0, 0, self.flags(), weight, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&self.index.to_ne_bytes());
        request.with_counted(&fixed, |request| self.gateway(request, of))
    }

    /// `RTNH_F_…`.
    pub fn flags(&self) -> u8 {
        if self.on_link { ON_LINK as u8 } else { 0 }
    }

    /// Adds the gateway of a route of family `of`.
    pub fn gateway(&self, request: Request, of: u8) -> Request {
        let family = family(&self.gateway);
        if self.gateway.is_empty() {
            request
        } else if family == of {
            request.with(libc::RTA_GATEWAY, &self.gateway)
        } else {
            // `struct rtvia`: the family in 16 bits, then the address.
            request.with(libc::RTA_VIA, &[&u16::from(family).to_ne_bytes(), &self.gateway[..]].concat())
        }
    }
}
