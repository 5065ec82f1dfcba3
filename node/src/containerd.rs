//! The daemon as a client of the containerd it serves.

mod configs;
pub mod content;
pub mod cri;
pub mod events;
pub mod images;
pub mod leases;
pub mod runtime;
pub mod scope;
pub mod tasks;
pub mod unpack;

use std::path::PathBuf;
use std::time::Duration;

use cloister_image::Digest;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use self::configs::Configs;
use crate::api::containers::v1 as containers;
use crate::api::content::v1 as api;
use crate::error::{Error, Result};

/// How long containerd may take for a look-up.
const DEADLINE: Duration = Duration::from_secs(10);
/// What bounds a stream of any length, only so that it is bounded.
const STREAM: Duration = Duration::from_secs(24 * 3600);
/// Header with containerd's namespace.
const NAMESPACE: &str = "containerd-namespace";
/// The namespace of the CRI, where a container's snapshot has the container's id.
pub const CRI: &str = "k8s.io";

/// Whose a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A container of our shim.
    MicroVm,
    /// A container of another runtime, or a caller that mounts by itself.
    Other,
    /// No container that containerd knows of.
    Unknown,
}

/// A connection to containerd, made when first used and again when lost.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    configs: Configs,
}

/// A way to the services on a unix socket.
pub fn dial(path: PathBuf) -> Result<Channel> {
    // The address is only used for the connector's own socket.
    let endpoint = Endpoint::try_from("http://containerd")
        .map_err(|error| Error::Invalid(error.to_string()))?
        .connect_timeout(DEADLINE);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })))
}

impl Containerd {
    /// Connects lazily to the socket at `path`.
    pub fn new(path: PathBuf) -> Result<Self> {
        Ok(Self { channel: dial(path)?, configs: Configs::default() })
    }

    /// Whose snapshot `key` is.
    pub async fn owner(&self, namespace: &str, key: &str) -> Result<Owner> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let get = containers::GetContainerRequest { id: key.to_owned() };
        let found = match client.get(request(namespace, get)?).await {
            Ok(reply) => reply.into_inner().container,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(failed("look up a container", &status)),
        };
        let matches = |container: &containers::Container| container.snapshot_key == key;
        let mut found = found.filter(matches);
        if found.is_none() && namespace != CRI {
            // Other clients may give a snapshot another name than its container.
            let list = request(namespace, containers::ListContainersRequest::default())?;
            let reply = client.list(list).await.map_err(|status| failed("list containers", &status))?;
            found = reply.into_inner().containers.into_iter().find(matches);
        }
        Ok(match found.and_then(|container| container.runtime) {
            Some(runtime) if is_ours(&runtime.name) => Owner::MicroVm,
            Some(_) => Owner::Other,
            None => Owner::Unknown,
        })
    }

    /// The paths that images with this chain of layers declare as volumes.
    pub async fn volumes(&self, namespace: &str, chain: &Digest) -> Result<Vec<String>> {
        self.configs.volumes(self, namespace, chain).await
    }

    fn content(&self) -> api::content_client::ContentClient<Channel> {
        api::content_client::ContentClient::new(self.channel.clone())
    }

    /// Starts to read a blob from its beginning.
    pub async fn read(
        &self,
        namespace: &str,
        digest: &str,
    ) -> Result<tonic::Streaming<api::ReadContentResponse>> {
        self.read_from(namespace, digest, 0).await
    }

    /// Starts to read a blob from the byte `offset`.
    pub async fn read_from(
        &self,
        namespace: &str,
        digest: &str,
        offset: u64,
    ) -> Result<tonic::Streaming<api::ReadContentResponse>> {
        let offset = offset.cast_signed();
        let read = api::ReadContentRequest { digest: digest.to_owned(), offset, size: 0 };
        // The deadline of a whole layer would be a guess: whoever reads waits for each piece only so long.
        let mut request = request(namespace, read)?;
        request.set_timeout(STREAM);
        let reply = self.content().read(request).await.map_err(|status| match status.code() {
            Code::NotFound => Error::NotFound(format!("blob {digest} in containerd")),
            _ => failed("read a blob", &status),
        })?;
        Ok(reply.into_inner())
    }
}

/// Whether a runtime name, or the path of a shim, is our shim's.
fn is_ours(runtime: &str) -> bool {
    let binary = runtime.rsplit('/').next().unwrap_or(runtime);
    runtime.starts_with("io.containerd.cloister.") || binary.starts_with("containerd-shim-cloister-")
}

fn request<T>(namespace: &str, message: T) -> Result<Request<T>> {
    let value: MetadataValue<Ascii> =
        namespace.parse().map_err(|_| Error::Invalid(format!("{namespace:?} is not a namespace")))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE, value);
    request.set_timeout(DEADLINE);
    Ok(request)
}

fn failed(what: &str, status: &tonic::Status) -> Error {
    Error::Containerd(format!("cannot {what}: {}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_shim_is_ours() {
        assert!(is_ours("io.containerd.cloister.v2"));
        assert!(is_ours("/usr/local/bin/containerd-shim-cloister-v2"));
        assert!(!is_ours("io.containerd.runc.v2"));
        assert!(!is_ours(""));
    }
}
