//! Requests to the kernel over netlink(7): messages, attributes, acknowledgements, dumps (linux/netlink.h).
//!
//! Each request is answered before the next is sent, on a blocking socket with a deadline: the kernel answers while the
//! request is being sent, so there is nothing for an executor to do. What is asked is the caller's business.

mod error;
mod message;
mod socket;

pub use error::{Error, Result};
pub use message::{Attributes, Message, Request, name, u16_at, u32_at};
pub use socket::Netlink;
