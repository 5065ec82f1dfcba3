//! What a build may ask of our side while it runs: a gRPC server at our end of `Control.Session`.

mod auth;
mod health;
mod secrets;
mod ssh;
mod tunnel;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;

use self::health::Alive;
use self::tunnel::Tunnel;
use super::connection::{BuildKit, CONNECTION_WINDOW, STREAM_WINDOW};
use super::content::{ContentService, ContentStore};
use super::error::{Error, Result};
use super::id::random_id;
use crate::context::{FileSyncService, MAX_METADATA};
use crate::output::FileSendService;

pub use self::auth::Registries;
pub use self::secrets::{MAX_SECRET, Secret, Secrets};
pub use self::ssh::{DEFAULT_AGENT, SshAgents};

/// How long buildkitd may take to open its end.
const OPEN: Duration = Duration::from_secs(30);
/// Calls that buildkitd may have open at once: files of a large context are requested within one call.
const MAX_CALLS: u32 = 256;
/// Pieces on their way out.
const QUEUE: usize = 16;

/// The services one build gets to see.
pub struct Session {
    name: String,
    shared_key: String,
    methods: Vec<&'static str>,
    routes: RoutesBuilder,
    content: BTreeMap<String, ContentStore>,
}

impl Session {
    /// A session that offers nothing. Builds of one folder share what they have transferred when they have the same
    /// `shared_key`.
    pub fn new(name: impl Into<String>, shared_key: impl Into<String>) -> Self {
        let mut session = Self {
            name: name.into(),
            shared_key: shared_key.into(),
            methods: Vec::new(),
            routes: Routes::builder(),
            content: BTreeMap::new(),
        };
        session.add(&["/grpc.health.v1.Health/Check"], HealthServer::new(Alive));
        session
    }

    /// Offers folders to read.
    #[must_use]
    pub fn files(self, folders: FileSyncService) -> Self {
        self.service(&["/moby.filesync.v1.FileSync/DiffCopy"], folders.server())
    }

    /// Takes what the build sends back as files.
    #[must_use]
    pub fn output(self, outputs: FileSendService) -> Self {
        self.service(&["/moby.filesync.v1.FileSend/DiffCopy"], outputs.server())
    }

    /// Offers secrets to steps that mount them.
    #[must_use]
    pub fn secrets(mut self, secrets: Secrets) -> Self {
        self.add(&["/moby.buildkit.secrets.v1.Secrets/GetSecret"], SecretsServer::new(secrets));
        self
    }

    /// Offers SSH agents to steps that mount them.
    #[must_use]
    pub fn ssh(mut self, agents: SshAgents) -> Self {
        let methods = &["/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"];
        self.add(methods, SshServer::new(agents));
        self
    }

    /// Offers credentials of registries.
    #[must_use]
    pub fn auth(mut self, registries: Registries) -> Self {
        self.add(&["/moby.filesync.v1.Auth/Credentials"], AuthServer::new(registries));
        self
    }

    /// Offers a store of blobs under a name, in place of one of the same name.
    #[must_use]
    pub fn content(mut self, name: impl Into<String>, store: impl Into<ContentStore>) -> Self {
        self.content.insert(name.into(), store.into());
        self
    }

    /// Offers any other service by the full names of its methods.
    #[must_use]
    pub fn service<S>(mut self, methods: &[&'static str], service: S) -> Self
    where
        S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.add(methods, service);
        self
    }

    /// Opens the session at buildkitd and serves it until the value is dropped.
    pub(super) async fn open(mut self, buildkit: &BuildKit) -> Result<Open> {
        if !self.content.is_empty() {
            let stores = std::mem::take(&mut self.content);
            self.add(ContentService::METHODS, ContentService::server(stores));
        }
        let id = random_id()?;
        let (outgoing, pieces) = mpsc::channel(QUEUE);
        let mut request = Request::new(ReceiverStream::new(pieces));
        let metadata = request.metadata_mut();
        for (key, value) in [
            ("x-docker-expose-session-uuid", &id),
            ("x-docker-expose-session-name", &self.name),
            ("x-docker-expose-session-sharedkey", &self.shared_key),
        ] {
            let value: MetadataValue<Ascii> =
                value.parse().map_err(|_| Error::invalid(key, "not printable ASCII"))?;
            metadata.insert(key, value);
        }
        for method in &self.methods {
            metadata.append("x-docker-expose-session-grpc-method", MetadataValue::from_static(method));
        }
        let mut control = buildkit.control.clone();
        let incoming = buildkit.call("session", OPEN, control.session(request)).await?.into_inner();
        let end = CancellationToken::new();
        let tunnel = Tunnel::new(incoming, outgoing, end.clone());
        let server = Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_METADATA)
            .add_routes(self.routes.routes());
        // One connection and no other, and the server stays until it is told to end.
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(tunnel)).chain(tokio_stream::pending());
        let stop = end.clone();
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
                tracing::debug!(%error, "session ended");
            }
        });
        Ok(Open { id, serving, _end: end.drop_guard() })
    }

    fn add<S>(&mut self, methods: &[&'static str], service: S)
    where
        S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.methods.extend(methods);
        self.routes.add_service(service);
    }
}

/// A session that is being served.
pub(super) struct Open {
    /// What buildkitd knows it by.
    pub(super) id: String,
    serving: JoinHandle<()>,
    _end: DropGuard,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
