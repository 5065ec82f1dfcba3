//! `moby.filesync.v1.FileSend`.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use super::Output;

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
        let _ = self.outputs;
        FileSendServer {}
    }
}

/// The service as a server mounts it. One method name stands for two protocols, packets of a tree and a stream of
/// bytes: which one it is depends on the output that is asked for.
#[derive(Clone)]
pub struct FileSendServer {}

impl NamedService for FileSendServer {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl Service<http::Request<Body>> for FileSendServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(tonic::Status::unimplemented("").into_http()) })
    }
}
