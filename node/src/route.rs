//! Two gRPC services on one socket, told apart by the path of the call.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// Calls for `A` go to `A`, all others to `B`, which refuses what is not its own either.
#[derive(Debug, Clone)]
pub struct Either<A, B>(pub A, pub B);

type Request = http::Request<Body>;
type Response = http::Response<Body>;

impl<A, B> Service<Request> for Either<A, B>
where
    A: Service<Request, Response = Response, Error = Infallible> + NamedService,
    B: Service<Request, Response = Response, Error = Infallible>,
    A::Future: Send + 'static,
    B::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.0.poll_ready(cx) {
            Poll::Ready(Ok(())) => self.1.poll_ready(cx),
            other => other,
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        if service == Some(A::NAME) { Box::pin(self.0.call(request)) } else { Box::pin(self.1.call(request)) }
    }
}
