//! What a device is told when it is made.

use std::path::PathBuf;
use std::time::Duration;

/// Configuration of one device.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's context id: 3 or more, below 2³² - 1. It has a meaning inside this VM only, so every VM can have the same.
    pub guest_cid: u64,
    /// Where to listen for host programs (`CONNECT <port>\n` → `OK <host port>\n`). A connection the guest makes to port P of the host
    /// goes to the socket at this path followed by `_P`. Without it the guest cannot connect to the host at all.
    pub socket: Option<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self { guest_cid: 3, socket: None, limits: Limits::default() }
    }
}

/// Bounds on what one device may use, whatever its guest does.
///
/// The device's own memory stays below `total_buffer` + one `connection_buffer` (while a buffer grows) + 1 KiB per connection + 1 MiB:
/// 66.25 MiB by default (a test counts). Besides, the kernel holds at most one socket
/// buffer (`net.core.wmem_default`, 208 KiB) per connection and direction, as for any socket.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time, 1 to 65,536, those being set up and torn down included. One more from the guest is reset; one more from
    /// the host fails with [`DialError::TooManyConnections`](crate::DialError::TooManyConnections).
    pub connections: usize,
    /// Most bytes from the guest held for one connection whose host side does not read; this is the credit the guest gets.
    pub connection_buffer: usize,
    /// Most bytes from the guest held over all connections. When many are open each gets less credit, but at least
    /// `total_buffer / (2 × connections)`, which must be 4 KiB or more.
    pub total_buffer: usize,
    /// Time for a program on the hybrid socket to say `CONNECT`, and then for the guest to accept.
    pub connect_timeout: Duration,
    /// Time for the guest to confirm the end of a connection that is closed on the host, before it is reset.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connection_buffer: 256 << 10,
            total_buffer: 64 << 20,
            connect_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(8),
        }
    }
}
