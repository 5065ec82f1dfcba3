//! `moby.filesync.v1.FileSync`.

use std::collections::BTreeMap;
use std::pin::Pin;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;

/// Serves named contexts to BuildKit: `context` and `dockerfile` are what its Dockerfile frontend asks for.
#[derive(Debug)]
pub struct FileSyncService {
    contexts: BTreeMap<String, Context>,
}

impl FileSyncService {
    /// A service for these names.
    pub fn new(contexts: impl IntoIterator<Item = (String, Context)>) -> Self {
        Self { contexts: contexts.into_iter().collect() }
    }

    /// For the session's server, with the limits that belong to it.
    pub fn server(self) -> FileSyncServer<Self> {
        FileSyncServer::new(self).max_decoding_message_size(64 << 10)
    }
}

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for FileSyncService {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(
        &self,
        _request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        Err(Status::unimplemented(format!("{} contexts", self.contexts.len())))
    }

    async fn tar_stream(
        &self,
        _request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("contexts are sent by DiffCopy"))
    }
}
