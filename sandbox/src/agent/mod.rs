//! Calls to the guest agent. Every answer is treated as hostile: bounded in size by the channel, in time by a
//! deadline, in range by the checks here.

mod containers;
mod copy;
mod forward;
mod network;
mod stats;
mod volumes;

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloister_protocol::v1::{self, agent_client::AgentClient};
use cloister_protocol::{StreamId, limits, ports, stream, version};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tracing::Instrument;

pub use containers::{Exit, NewContainer, Running, Stdio};
pub use network::Grown;
pub use stats::OomEvents;

use crate::dial::{Connection, Dialer};
use crate::error::{Error, printable};

/// A call that only touches the agent's own state.
const QUICK: Duration = Duration::from_secs(10);
/// A call that mounts, forks or waits for devices in the guest; emulation is slow.
const SLOW: Duration = Duration::from_secs(60);
/// How often an unanswered first connection is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How long one attempt may take before the guest listens at all.
const ATTEMPT: Duration = Duration::from_secs(2);

/// What the agent said about its guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// MAJOR.MINOR.PATCH of the protocol.
    pub version: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// Guest time from the kernel's start to PID 1's.
    pub agent_started: Duration,
    /// Guest time from the kernel's start to the agent listening.
    pub agent_listening: Duration,
    /// Whether the guest runs privileged containers.
    pub privileged: bool,
}

/// A connection to one guest's agent. Clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient<Channel>,
    dialer: Dialer,
}

impl Agent {
    /// Connects to a guest that may still be booting, compares versions, sets its clock and feeds its entropy pool.
    ///
    /// # Errors
    /// [`Error::Dial`] when nothing answers within `deadline`, [`Error::Version`] for another release's agent.
    pub async fn connect(dialer: Dialer, deadline: Duration) -> Result<(Self, Guest), Error> {
        let begun = tokio::time::Instant::now();
        let mut cause = String::from("nothing listens");
        while begun.elapsed() < deadline {
            let attempt = ATTEMPT.min(deadline.saturating_sub(begun.elapsed()));
            match tokio::time::timeout(attempt, dialer.connect(ports::CONTROL)).await {
                Ok(Ok(connection)) => match Self::over(connection, dialer.clone(), attempt).await {
                    Err(Error::Call { code: tonic::Code::Unavailable, message, .. }) => cause = message,
                    Err(Error::Deadline { .. }) => {
                        cause = "the connection was taken but not answered".to_owned()
                    }
                    result => return result,
                },
                Ok(Err(error)) => cause = error.to_string(),
                Err(_) => cause = "the connection was neither taken nor refused".to_owned(),
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(Error::Dial { port: ports::CONTROL, after: deadline, cause })
    }

    async fn over(
        connection: Connection,
        dialer: Dialer,
        deadline: Duration,
    ) -> Result<(Self, Guest), Error> {
        let unavailable = |error: tonic::transport::Error| Error::Call {
            call: "connect",
            code: tonic::Code::Unavailable,
            message: printable(&error.to_string()),
        };
        // The connection that was tried is the first one used; a later one (after the agent closed it) is dialled.
        let mut first = Some(connection);
        let again = dialer.clone();
        let connector = tower::service_fn(move |_| {
            let ready = first.take();
            let dialer = again.clone();
            async move {
                match ready {
                    Some(connection) => Ok(TokioIo::new(connection)),
                    None => dialer.connect(ports::CONTROL).await.map(TokioIo::new),
                }
            }
        });
        let channel = Endpoint::from_static("http://guest")
            .connect_timeout(QUICK)
            .connect_with_connector(connector)
            .await
            .map_err(unavailable)?;
        let client = AgentClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        let mut agent = Self { client, dialer };
        let guest = agent.hello(deadline).await?;
        Ok((agent, guest))
    }

    async fn hello(&mut self, deadline: Duration) -> Result<Guest, Error> {
        let mut entropy = vec![0; 64];
        fill_random(&mut entropy)?;
        let request =
            v1::HelloRequest { version: version::VERSION.to_string(), unix_nanos: unix_nanos(), entropy };
        let reply = call("say hello to the guest agent", deadline, self.client.hello(request)).await?;
        if version::check(&reply.version)? == version::Match::OtherPatch {
            tracing::warn!(agent = %reply.version, ours = %version::VERSION, "the guest agent is of another patch release");
        }
        Ok(Guest {
            kernel_release: printable(&reply.kernel_release),
            version: reply.version,
            agent_started: Duration::from_nanos(reply.agent_started_nanos),
            agent_listening: Duration::from_nanos(reply.agent_listening_nanos),
            privileged: reply.privileged,
        })
    }

    /// Opens a raw stream under a fresh random name, before the call that quotes it.
    ///
    /// # Errors
    /// When the guest does not take it in time.
    pub async fn open_stream(&self) -> Result<(StreamId, Connection), Error> {
        let mut id = [0; 16];
        fill_random(&mut id)?;
        let id = StreamId(id);
        let dial = tokio::time::timeout(QUICK, self.dialer.connect(ports::STREAMS));
        let failed = |cause: String| Error::Dial { port: ports::STREAMS, after: QUICK, cause };
        let mut connection = dial
            .await
            .map_err(|_| failed("the connection was neither taken nor refused".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        stream::open(&mut connection, id, QUICK).await?;
        Ok((id, connection))
    }

    /// Asks whether the agent still serves calls.
    ///
    /// # Errors
    /// When it does not answer within `deadline`.
    pub async fn health(&self, deadline: Duration) -> Result<(), Error> {
        call("ask for the guest's health", deadline, self.client.clone().health(v1::HealthRequest {}))
            .await?;
        Ok(())
    }

    /// Ends every process of the guest (TERM, then KILL after `grace`), syncs and powers it off.
    ///
    /// # Errors
    /// When the agent does not answer; a connection that the power-off cuts is not an error.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), Error> {
        let request =
            v1::ShutdownRequest { grace_millis: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX) };
        match call("shut the guest down", grace + QUICK, self.client.clone().shutdown(request)).await {
            Ok(_) | Err(Error::Call { code: tonic::Code::Unavailable | tonic::Code::Unknown, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// One call, in a span of its own inside that of whatever it is made for.
async fn call<T>(
    name: &'static str,
    deadline: Duration,
    reply: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    let answered = async {
        let begun = tokio::time::Instant::now();
        let result = match tokio::time::timeout(deadline, reply).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(Error::call(name, &status)),
            Err(_) => Err(Error::Deadline { call: name, after: deadline }),
        };
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::debug!(took_ms, "answered"),
            Err(error) => tracing::debug!(took_ms, %error, "failed"),
        }
        result
    };
    answered.instrument(tracing::debug_span!("agent", call = name)).await
}

/// Nanoseconds since the Unix epoch; 0 for a clock before it.
fn unix_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or_default()
}

fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::System { what: "read random bytes", cause: errno.into() })?;
    }
    Ok(())
}
