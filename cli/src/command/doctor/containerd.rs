//! The three questions that containerd is asked, over gRPC on its socket: CRI v1 `Version` and `Status`
//! (kubernetes/cri-api, `runtime.v1`), and which plugins it loaded (containerd, `services/introspection/v1`).
//! The messages have only the fields that are read.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// How long all answers together may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer; real ones have a few KiB.
const ANSWER: usize = 1 << 20;

/// `VersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    /// `containerd`, unless the socket is somebody else's.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// For example `2.1.9+unknown`.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginsRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    plugins: Vec<Plugin>,
}

/// A plugin that containerd knows.
#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    /// For a proxy, what its table in the configuration is called.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Why it is not usable.
    #[prost(message, optional, tag = "7")]
    pub failure: Option<PluginFailure>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct PluginFailure {
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What containerd said.
#[derive(Debug)]
pub struct Answers {
    /// Who it is.
    pub version: Version,
    /// Its CRI configuration as JSON, empty when it tells none.
    pub config: String,
    /// Those of the wanted plugins that are there.
    pub plugins: Vec<Plugin>,
}

/// Why there are no answers.
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens, or we may not connect.
    Unreachable(io::Error),
    /// The daemon does not serve the CRI.
    NoCri,
    /// Anything else.
    Call(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::NoCri,
            _ => Self::Call(status.message().to_owned()),
        }
    }
}

/// Asks the daemon at `socket`, also for the plugins with these ids.
pub async fn ask(socket: &Path, plugins: &[&str]) -> Result<Answers, Failure> {
    let questions = async {
        let mut client = connect(socket).await?;
        let version = call(&mut client, "/runtime.v1.RuntimeService/Version", ()).await?;
        let status = StatusRequest { verbose: true };
        let mut status: StatusResponse =
            call(&mut client, "/runtime.v1.RuntimeService/Status", status).await?;
        let filters = plugins.iter().map(|id| format!("id=={id}")).collect();
        let found: PluginsResponse = call(
            &mut client,
            "/containerd.services.introspection.v1.Introspection/Plugins",
            PluginsRequest { filters },
        )
        .await?;
        let config = status.info.remove("config").unwrap_or_default();
        Ok(Answers { version, config, plugins: found.plugins })
    };
    let late = |_| Err(Failure::Call(format!("no answer within {} s", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, questions).await.unwrap_or_else(late)
}

async fn connect(socket: &Path) -> Result<Grpc<Channel>, Failure> {
    // Connected here, where the reason of a failure is still known.
    let mut stream = Some(UnixStream::connect(socket).await.map_err(Failure::Unreachable)?);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://containerd").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| Failure::Call(error.to_string()))?;
    Ok(Grpc::new(channel).max_decoding_message_size(ANSWER))
}

async fn call<Q, A>(client: &mut Grpc<Channel>, method: &'static str, question: Q) -> Result<A, Failure>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    client.ready().await.map_err(|error| Failure::Call(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = client.unary(Request::new(question), PathAndQuery::from_static(method), codec).await?;
    Ok(answer.into_inner())
}
