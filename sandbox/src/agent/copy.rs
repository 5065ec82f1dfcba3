//! Files in and out of a container.

use cloister_protocol::{StreamId, v1};

use super::Agent;
use crate::error::Error;

impl Agent {
    /// Unpacks the tar archive that arrives on `stream` below `path`; returns once all of it is in place. Has no
    /// deadline of its own: the caller moves the bytes and ends the stream.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn copy_in(&self, container: &str, path: &str, stream: StreamId) -> Result<u64, Error> {
        let reply = self.client.clone().copy_in(copy(container, path, stream)).await;
        Ok(reply.map_err(|status| Error::call("copy into the container", &status))?.into_inner().bytes)
    }

    /// Sends `path` as a tar archive on `stream`; returns once all of it is sent. Has no deadline of its own: the
    /// caller moves the bytes.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn copy_out(&self, container: &str, path: &str, stream: StreamId) -> Result<u64, Error> {
        let reply = self.client.clone().copy_out(copy(container, path, stream)).await;
        Ok(reply.map_err(|status| Error::call("copy out of the container", &status))?.into_inner().bytes)
    }
}

fn copy(container: &str, path: &str, stream: StreamId) -> v1::CopyRequest {
    v1::CopyRequest { container_id: container.to_owned(), path: path.to_owned(), stream: stream.to_vec() }
}
