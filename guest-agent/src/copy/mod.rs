//! Files in and out of a container, as tar streams.

mod export;
mod import;

use std::os::fd::OwnedFd;
use std::time::Duration;

pub use export::export;
pub use import::{Bounds, import};

use crate::error::{Context, Result};

/// How long the other side of a copy may stay silent.
const SILENCE: Duration = Duration::from_secs(60);

/// A stream as a file, whose reads and writes end after [`SILENCE`].
fn file(stream: OwnedFd) -> Result<std::fs::File> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&stream, direction, Some(SILENCE))
            .context(|| "set a deadline on the stream".into())?;
    }
    Ok(stream.into())
}
