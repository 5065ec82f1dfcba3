//! `moby.filesync.v1.FileSend`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::packet::file_send_server as tree_api;
use bollard_buildkit_proto::moby::filesync::v1::{BytesMessage, file_send_server as stream_api};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Empty, Stream, empty};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::target::Target;
use super::tree::{Receiver, STALL};
use super::{Output, OutputError, Received, stream};

/// Largest message of a stream, in bytes: older BuildKits write blobs in pieces of any size.
const MAX_MESSAGE: usize = 16 << 20;
/// Says which of a build's exporters sends; not there when there is one.
const EXPORTER: &str = "buildkit-attachable-exporter-id";

/// Receives the outputs of a build, each at its place in the solve request's list of exporters.
pub struct FileSendService {
    outputs: Vec<Output>,
}

impl FileSendService {
    /// A service for these outputs.
    pub fn new(outputs: impl IntoIterator<Item = Output>) -> Self {
        Self { outputs: outputs.into_iter().collect() }
    }

    /// For the session's server, with the limits that belong to it.
    pub fn server(self) -> FileSendServer {
        let outputs = self.outputs.into_iter().map(Once::new).collect();
        FileSendServer { outputs }
    }
}

/// The service as a server mounts it. One method name stands for two protocols, packets of a tree and a stream of
/// bytes: which one it is depends on the output that is asked for.
#[derive(Clone)]
pub struct FileSendServer {
    outputs: Arc<[Once]>,
}

/// An output that is sent at most once.
struct Once(Mutex<Option<Output>>);

impl Once {
    fn new(output: Output) -> Self {
        Self(Mutex::new(Some(output)))
    }

    fn take(&self) -> Result<Output, Status> {
        let output = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| Status::already_exists("this output was sent before"))
    }
}

impl NamedService for FileSendServer {
    const NAME: &'static str = stream_api::SERVICE_NAME;
}

impl Service<http::Request<Body>> for FileSendServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let id = request.headers().get(EXPORTER).and_then(|id| id.to_str().ok()).unwrap_or("0");
        let output = id.parse().ok().and_then(|id: usize| self.outputs.get(id));
        let output = output.ok_or_else(|| Status::not_found(format!("this build has no output {id:?}")));
        match output.and_then(Once::take) {
            Ok(output) if matches!(output.target, Target::Folder { .. }) => {
                tree_api::FileSendServer::new(Once::new(output)).call(request)
            }
            Ok(output) => stream_api::FileSendServer::new(Once::new(output))
                .max_decoding_message_size(MAX_MESSAGE)
                .call(request),
            Err(status) => Box::pin(async { Ok(status.into_http()) }),
        }
    }
}

#[tonic::async_trait]
impl stream_api::FileSend for Once {
    type DiffCopyStream = Empty<Result<BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let Output { target, done } = self.take()?;
        let received = stream::receive(target, request.into_inner()).await;
        let answer = received.as_ref().map(|_| Response::new(empty())).map_err(refusal);
        let _ = done.send(received);
        answer
    }
}

#[tonic::async_trait]
impl tree_api::FileSend for Once {
    type DiffCopyStream = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let Output { target: Target::Folder { staging, limits }, done } = self.take()? else {
            return Err(Status::internal("a tree where a stream was asked for"));
        };
        let (answers, stream) = mpsc::channel(16);
        let (mut incoming, runtime) = (request.into_inner(), Handle::current());
        // Ends with the connection, or when nothing comes any more.
        tokio::task::spawn_blocking(move || {
            let receiver = Receiver::new(staging, limits);
            let received = receive(receiver, &mut incoming, &answers, &runtime);
            if let Err(error) = &received {
                let text = error.to_string().into_bytes();
                let packet = Packet { r#type: PacketType::PacketErr.into(), data: text, ..Packet::default() };
                // Nobody may be there to read them.
                for answer in [Ok(packet), Err(refusal(error))] {
                    let _ = answers.try_send(answer);
                }
            }
            let _ = done.send(received);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn receive(
    mut receiver: Receiver,
    incoming: &mut Streaming<Packet>,
    answers: &mpsc::Sender<Result<Packet, Status>>,
    runtime: &Handle,
) -> Result<Received, OutputError> {
    let mut put = Vec::new();
    loop {
        let packet =
            runtime.block_on(timeout(STALL, incoming.message())).map_err(|_| OutputError::Stalled)?;
        let packet = packet.ok().flatten().ok_or(OutputError::Missing)?;
        let received = receiver.take(packet, &mut put)?;
        for packet in put.drain(..) {
            let sent = runtime.block_on(timeout(STALL, answers.send(Ok(packet))));
            sent.map_err(|_| OutputError::Stalled)?.map_err(|_| OutputError::Missing)?;
        }
        if let Some(received) = received {
            // The builder says that it has nothing either; the tree is there whether it does or not.
            let _ = runtime.block_on(timeout(Duration::from_secs(10), incoming.message()));
            return Ok(received);
        }
    }
}

fn refusal(error: &OutputError) -> Status {
    tracing::warn!(%error, "an output was not taken");
    Status::aborted(error.to_string())
}
