//! The interfaces that CNI plugins made for a pod, given to its microVM; and the way back for port-forward.
//!
//! ```text
//!   host            pod's network namespace                         microVM
//!   veth  <------>  eth0  -- tc ingress: redirect -->  cltap2  <-->  virtio-net "eth0"
//!                         <-- redirect: tc ingress --                same MAC, addresses, routes, MTU
//!                   lo: 127.0.0.1:PORT -> nftables -> Forwarder  ~~ vsock ~~>  127.0.0.1:PORT
//! ```
//!
//! [`inspect`] reads what the plugins made; [`mirror`] puts a tap beside each interface and joins the two; [`remove`]
//! takes that apart again. [`Forwarder`] carries connections to the namespace's loopback into the guest. The taps
//! and the forwarder's rules belong to open descriptors: they vanish with the process that holds them.

mod counters;
mod error;
mod forward;
mod inspect;
mod interface;
mod mirror;
mod netns;
mod nft;
mod relay;
mod tap;
#[cfg(test)]
mod tests;

pub use counters::{Counters, counters};
pub use error::{Error, Result};
pub use forward::{Forwarder, MAX_CONNECTIONS};
pub use inspect::inspect;
pub use interface::{Interface, Neighbour, NextHop, Prefix, Route};
pub use mirror::{mirror, remove};
pub use netns::Netns;
