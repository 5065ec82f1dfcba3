//! The contract between a host and the agent that is PID 1 of its guest.
//!
//! Control calls are gRPC over vsock port [`ports::CONTROL`] ([`v1`], generated from `proto/agent.proto`). Each stream
//! of bytes is a vsock connection of its own to [`ports::STREAMS`] that begins with a short [`stream`] handshake. Both
//! sides refuse a peer whose [`version`] they cannot speak and bound what they accept by [`limits`].

pub mod forward;
pub mod limits;
pub mod paths;
pub mod ports;
pub mod stream;
pub mod version;

/// Messages, client and server generated from `proto/agent.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("cloister.agent.v1");
}

pub use stream::StreamId;
