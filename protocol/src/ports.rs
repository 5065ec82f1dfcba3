//! The vsock ports the agent listens on.

/// gRPC control calls.
pub const CONTROL: u32 = 1024;

/// Raw streams, each beginning with the handshake of [`crate::stream`].
pub const STREAMS: u32 = 1025;
