//! Raw streams: vsock connections that a later call names.

mod pump;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_protocol::{StreamId, limits, stream};
use tokio_vsock::{VsockListener, VsockStream};

pub use pump::{Flow, Signal, pump};

use crate::error::{Context, Error, Result, lock};

/// Pause after a connection that could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// Streams that were opened and that no call named yet.
#[derive(Default)]
pub struct Streams {
    unclaimed: Mutex<HashMap<StreamId, OwnedFd>>,
}

impl Streams {
    /// Accepts streams, for ever.
    pub async fn run(self: Arc<Self>, listener: VsockListener) {
        loop {
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    // Out of descriptors, or the connection broke: neither ends the guest.
                    tracing::warn!(%error, "cannot accept a stream");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let streams = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = streams.admit(connection).await {
                    tracing::warn!(%error, "stream refused");
                }
            });
        }
    }

    async fn admit(&self, mut connection: VsockStream) -> Result<()> {
        let id =
            stream::accept(&mut connection, limits::HANDSHAKE).await.context(|| "accept a stream".into())?;
        let descriptor = connection.as_fd().try_clone_to_owned().context(|| format!("keep stream {id}"))?;
        let admitted = {
            // Listed before the answer is sent: the call that names it may come right behind.
            let mut unclaimed = lock(&self.unclaimed);
            let free = unclaimed.len() < limits::UNCLAIMED_STREAMS && !unclaimed.contains_key(&id);
            if free {
                unclaimed.insert(id, descriptor);
            }
            free
        };
        let answer = if admitted { stream::ACCEPTED } else { stream::REFUSED_BUSY };
        let sent = stream::answer(&mut connection, answer, limits::HANDSHAKE).await;
        drop(connection);
        if admitted {
            if sent.is_ok() {
                tokio::time::sleep(limits::UNCLAIMED_AGE).await;
            }
            if lock(&self.unclaimed).remove(&id).is_some() {
                return Err(Error::state(format!("stream {id} was never claimed")));
            }
            return Ok(());
        }
        Err(Error::state(format!("stream {id}: too many unclaimed streams, or the id twice")))
    }

    /// Takes the stream that a request's field names, as a blocking descriptor; `None` for an empty field.
    ///
    /// # Errors
    /// When the id is malformed, or no such stream was opened.
    pub fn claim(&self, field: &[u8]) -> Result<Option<OwnedFd>> {
        if field.is_empty() {
            return Ok(None);
        }
        let id = StreamId::from_slice(field)
            .ok_or_else(|| Error::invalid(format!("a stream id has 16 bytes, not {}", field.len())))?;
        let descriptor = lock(&self.unclaimed).remove(&id).ok_or_else(|| {
            Error::state(format!("stream {id} is not open, or was left unclaimed for too long"))
        })?;
        rustix::io::ioctl_fionbio(&descriptor, false).context(|| format!("make stream {id} blocking"))?;
        Ok(Some(descriptor))
    }
}
