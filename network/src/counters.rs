//! What went over a pod's interfaces.

use cloister_netlink::{Message, Netlink, Request, Result as Answer, name};

use crate::inspect::LINK;
use crate::interface::Interface;
use crate::{Error, Netns, Result};

/// `IFLA_STATS64` of linux/if_link.h.
const STATS64: u16 = 23;

/// Counters of one interface since it was made, seen from the pod: received is what came to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// The interface's name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames received with an error.
    pub rx_errors: u64,
    /// Frames received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Frames dropped before they were sent.
    pub tx_dropped: u64,
}

/// Reads the counters of `interfaces`, in their order; those of one that is gone are zero.
///
/// # Errors
/// The kernel's reason.
pub async fn counters(netns: &Netns, interfaces: &[Interface]) -> Result<Vec<Counters>> {
    let names: Vec<String> = interfaces.iter().map(|interface| interface.name.clone()).collect();
    netns.run(move || read(names)).await
}

fn read(names: Vec<String>) -> Result<Vec<Counters>> {
    let list = || -> Answer<_> { Netlink::route()?.dump(Request::new(libc::RTM_GETLINK, 0, &[0; LINK])) };
    let links = list().map_err(Error::kernel("list", "interfaces"))?;
    let found: Vec<Counters> = links.iter().map(link).collect();
    let of = |name: String| {
        let counters = found.iter().find(|counters| counters.name == name).cloned();
        counters.unwrap_or_else(|| Counters { name, ..Counters::default() })
    };
    Ok(names.into_iter().map(of).collect())
}

/// `struct rtnl_link_stats64`: packets, bytes, errors and drops, each received and sent.
fn link(message: &Message) -> Counters {
    let mut counters = Counters::default();
    for (attribute, value) in message.attributes(LINK) {
        match attribute {
            libc::IFLA_IFNAME => counters.name = name(value),
            STATS64 => {
                let mut numbers = value.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
                for place in [
                    &mut counters.rx_packets,
                    &mut counters.tx_packets,
                    &mut counters.rx_bytes,
                    &mut counters.tx_bytes,
                    &mut counters.rx_errors,
                    &mut counters.tx_errors,
                    &mut counters.rx_dropped,
                    &mut counters.tx_dropped,
                ] {
                    *place = numbers.next().unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    counters
}
