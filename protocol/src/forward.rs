//! The request a connection to [`crate::ports::FORWARD`] begins with: two bytes, the TCP port of a server in the guest
//! (big endian). The agent connects to it on 127.0.0.1, then on ::1, and answers one byte: [`CONNECTED`], after which
//! the connection is the server's with half-close both ways, or [`REFUSED`], after which it is closed.

/// A server has accepted.
pub const CONNECTED: u8 = 1;

/// Nothing listens on the port.
pub const REFUSED: u8 = 0;
