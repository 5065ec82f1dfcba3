//! `moby.filesync.v1.FileSync`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, spawn_blocking};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use super::request::Asked;
use super::send::{Failure, Sender};

/// Contexts on their way at one time; more of them wait.
const AT_ONCE: usize = 8;
/// Packets that are read ahead of the connection, 32 KiB each.
const AHEAD: usize = 32;
/// Largest packet of a builder in bytes: a request, or the reason why it gave up.
const MAX_PACKET: usize = 64 << 10;

/// Serves named contexts to BuildKit: `context` and `dockerfile` are what its Dockerfile frontend asks for.
///
/// The session's server must take metadata of [`super::MAX_METADATA`] bytes: the patterns of a request are there.
#[derive(Debug)]
pub struct FileSyncService {
    contexts: BTreeMap<String, Context>,
    slots: Arc<Semaphore>,
}

impl FileSyncService {
    /// A service for these names.
    pub fn new(contexts: impl IntoIterator<Item = (String, Context)>) -> Self {
        Self { contexts: contexts.into_iter().collect(), slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// For the session's server, with the limits that belong to it.
    pub fn server(self) -> FileSyncServer<Self> {
        FileSyncServer::new(self).max_decoding_message_size(MAX_PACKET)
    }
}

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for FileSyncService {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let asked = Asked::read(request.metadata())?;
        let Some(context) = self.contexts.get(&asked.name).cloned() else {
            return Err(Status::not_found(format!("this build has no context {:?}", asked.name)));
        };
        let incoming = request.into_inner();
        let slots = self.slots.clone();
        let (packets, stream) = mpsc::channel(AHEAD);
        // Ends with the connection: then nobody takes packets, and nothing comes in.
        tokio::spawn(async move {
            let Ok(_slot) = slots.acquire_owned().await else { return };
            let sender = Sender::new(context.tree().clone(), packets.clone());
            let end = send(&sender, context, asked, incoming).await;
            sender.stop();
            match end {
                Ok(()) => drop(packets.send(Ok(packet(PacketType::PacketFin, Vec::new()))).await),
                Err(Failure::Gone) => {}
                Err(failure) => {
                    tracing::warn!(%failure, "a context was not sent");
                    // The model shows the text of the packet; who does not gets it from the call.
                    let text = failure.to_string();
                    let _ = packets.send(Ok(packet(PacketType::PacketErr, text.clone().into_bytes()))).await;
                    let _ = packets.send(Err(Status::aborted(text))).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn tar_stream(
        &self,
        _request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("contexts are sent by DiffCopy"))
    }
}

async fn send(
    sender: &Sender,
    context: Context,
    asked: Asked,
    incoming: Streaming<Packet>,
) -> Result<(), Failure> {
    let (queue, wanted) = mpsc::unbounded_channel();
    let (walker, files) = (sender.clone(), sender.clone());
    let walk = spawn_blocking(move || walker.walk(asked.filter(&context)?));
    let send = spawn_blocking(move || files.send(wanted));
    let ended = |end: Result<Result<(), Failure>, JoinError>| end.unwrap_or(Err(Failure::Gone));
    let listen = sender.listen(incoming, queue);
    // Once the builder has all it wants, what the others still do is in vain.
    let (walk, send) = (async { ended(walk.await) }, async { ended(send.await) });
    tokio::pin!(listen, walk, send);
    let (mut walking, mut sending) = (true, true);
    loop {
        tokio::select! {
            biased;
            end = &mut walk, if walking => { walking = false; end?; }
            end = &mut send, if sending => { sending = false; end?; }
            end = &mut listen => return end,
        }
    }
}

fn packet(kind: PacketType, data: Vec<u8>) -> Packet {
    Packet { r#type: kind.into(), data, ..Packet::default() }
}
