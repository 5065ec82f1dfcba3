//! `containerd.services.content.v1.Content`, as far as buildkitd uses it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_image::Digest;
use cloister_image::export::Blob;
use tokio::sync::mpsc;
use tokio_stream::Empty;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ContentStore;
use super::api::content_server::{Content, ContentServer};
use super::api::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest, WriteContentResponse,
};
use super::write::{Writer, failed};
use crate::client::connection::MAX_MESSAGE;
use crate::client::error::reason;

/// The header that names the store.
const STORE: &str = "buildkit-attachable-store-id";
/// Bytes read and sent at a time.
const PIECE: usize = 256 << 10;
/// Pieces on their way.
const QUEUE: usize = 4;

/// The stores of one session by name.
pub(in crate::client) struct ContentService(BTreeMap<String, ContentStore>);

impl ContentService {
    pub(in crate::client) const METHODS: &'static [&'static str] = &[
        "/containerd.services.content.v1.Content/Info",
        "/containerd.services.content.v1.Content/Update",
        "/containerd.services.content.v1.Content/Read",
        "/containerd.services.content.v1.Content/Status",
        "/containerd.services.content.v1.Content/ListStatuses",
        "/containerd.services.content.v1.Content/Write",
        "/containerd.services.content.v1.Content/Abort",
    ];

    pub(in crate::client) fn server(stores: BTreeMap<String, ContentStore>) -> ContentServer<Self> {
        ContentServer::new(Self(stores)).max_decoding_message_size(MAX_MESSAGE)
    }

    fn store<T>(&self, request: &Request<T>) -> Result<&ContentStore, Status> {
        let name = request.metadata().get(STORE).and_then(|name| name.to_str().ok()).unwrap_or_default();
        self.0
            .get(name)
            .ok_or_else(|| Status::not_found(format!("content store {}: not offered", reason(name))))
    }
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|_| Status::invalid_argument("not a sha256 digest"))
}

fn missing(digest: &Digest) -> Status {
    Status::not_found(format!("blob {digest}: not found"))
}

/// The blob, which may have to be brought here first.
async fn find(store: &ContentStore, digest: &str) -> Result<Arc<Blob>, Status> {
    let (store, digest) = (store.clone(), parse(digest)?);
    let found = tokio::task::spawn_blocking(move || store.blob(&digest)).await;
    let found = found.map_err(|error| Status::internal(error.to_string()))?;
    found.map_err(|error| failed(&error))?.ok_or_else(|| missing(&digest))
}

fn info(store: &ContentStore, digest: &str) -> Result<Info, Status> {
    let digest = parse(digest)?;
    let size = store.size(&digest).map_err(|error| failed(&error))?.ok_or_else(|| missing(&digest))?;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    Ok(Info { digest: digest.to_string(), size, ..Default::default() })
}

#[tonic::async_trait]
impl Content for ContentService {
    type ListStream = Empty<Result<ListContentResponse, Status>>;
    type ReadStream = ReceiverStream<Result<ReadContentResponse, Status>>;
    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let info = info(self.store(&request)?, &request.get_ref().digest)?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    /// Labels are not kept; buildkitd's are about its own garbage.
    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let wanted = request.get_ref().info.clone().unwrap_or_default();
        let info = info(self.store(&request)?, &wanted.digest)?;
        Ok(Response::new(UpdateResponse { info: Some(Info { labels: wanted.labels, ..info }) }))
    }

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("blobs are read by digest"))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::permission_denied("a build removes nothing here"))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadContentRequest { digest, offset, size } = request.get_ref();
        let blob = find(self.store(&request)?, digest).await?;
        let start = u64::try_from(*offset).unwrap_or(0);
        if start > blob.size() {
            return Err(Status::out_of_range(format!("read at {start} of a blob of {} bytes", blob.size())));
        }
        let whole = blob.size() - start;
        let len = u64::try_from(*size).ok().filter(|&size| size > 0).map_or(whole, |size| size.min(whole));
        let (pieces, stream) = mpsc::channel(QUEUE);
        // Ends with the call: nobody takes the pieces any more.
        tokio::task::spawn_blocking(move || {
            let mut sent = 0;
            while sent < len {
                let mut data = vec![0; PIECE.min(usize::try_from(len - sent).unwrap_or(PIECE))];
                let piece = match blob.read_at(&mut data, start + sent) {
                    Ok(0) => Err(Status::data_loss("the blob became shorter while it was read")),
                    Ok(n) => {
                        data.truncate(n);
                        let offset = i64::try_from(sent).unwrap_or(i64::MAX);
                        sent += n as u64;
                        Ok(ReadContentResponse { offset, data })
                    }
                    Err(error) => Err(failed(&error)),
                };
                let last = piece.is_err();
                if pieces.blocking_send(piece).is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    /// Writes are never taken up again, so there is nothing to tell about one.
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.store(&request)?;
        Err(Status::not_found("no such write"))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        self.store(&request)?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let ContentStore::Layout(layout) = self.store(&request)? else {
            return Err(Status::permission_denied("this content store is for reading"));
        };
        let mut writer = Writer::new(layout.clone())?;
        let mut messages = request.into_inner();
        let (answers, stream) = mpsc::channel(QUEUE);
        // Ends with the call: its messages end, or nobody takes the answers.
        tokio::spawn(async move {
            while let Some(message) = messages.message().await.transpose() {
                let handled = match message {
                    Ok(message) => tokio::task::spawn_blocking(move || {
                        let handled = writer.handle(&message);
                        (writer, handled)
                    })
                    .await
                    .map_err(|error| Status::internal(error.to_string())),
                    Err(status) => Err(status),
                };
                let answer = match handled {
                    Ok((back, handled)) => {
                        writer = back;
                        handled
                    }
                    Err(status) => {
                        let _ = answers.send(Err(status)).await;
                        return;
                    }
                };
                let done = !matches!(answer, Ok((_, false)));
                if answers.send(answer.map(|(answer, _)| answer)).await.is_err() || done {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.store(&request)?;
        Ok(Response::new(()))
    }
}
