//! A vhost-user-vsock device that never trusts its guest.
//!
//! The process that owns a VM hosts the device on one thread ([`Device`]) and makes connections into the guest from any thread
//! ([`Dialer`]); host programs can use a Unix socket instead ([`Config::socket`]). Implements the stream part of virtio 1.2 §5.10 as a
//! vhost-user back end; QEMU is the front end.
//!
//! What a guest can do to its host is bounded ([`Limits`]): memory, connections, and time. Whatever it writes into the queues, it gets
//! its connections reset or its packets dropped. Each packet's header is read once; payload goes between guest memory and sockets
//! in one copy, made by the kernel, unless the host side is slow, and then it waits in a buffer no larger than the credit the guest was
//! given. A connection whose host side never reads holds up that connection only.
//!
//! What is trusted: the front end. A QEMU that shrinks the file behind guest memory kills this process (`SIGBUS`); `memory-backend-memfd`
//! seals its file against that by default.

mod backend;
mod budget;
mod buffer;
mod config;
mod conn;
mod device;
mod dial;
mod error;
#[cfg(any(test, feature = "harness"))]
pub mod harness;
mod header;
mod hybrid;
mod metrics;
mod mux;
mod ring;
mod scatter;
mod table;
#[cfg(test)]
mod tests;
mod token;
mod worker;

pub use config::{Config, Limits};
pub use device::Device;
pub use dial::{DialCallback, Dialer};
pub use error::{DialError, Error};
pub use metrics::Metrics;
