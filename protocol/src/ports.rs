//! The vsock ports the agent listens on.

/// gRPC control calls.
pub const CONTROL: u32 = 1024;

/// Raw streams, each beginning with the handshake of [`crate::stream`].
pub const STREAMS: u32 = 1025;

/// Connections to TCP servers of the guest's loopback and unix sockets of its containers, each beginning with the request of
/// [`crate::forward`].
pub const FORWARD: u32 = 1026;
