//! Calls to the guest agent. Every answer is treated as hostile: bounded in size by the channel, in time by a
//! deadline, in range by the checks here.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloister_protocol::v1::{self, agent_client::AgentClient};
use cloister_protocol::{StreamId, limits, ports, stream, version};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255; 128 + the signal for a process that a signal ended.
    pub code: u8,
    /// Whether the guest's kernel killed it for lack of memory.
    pub oom_killed: bool,
}

/// The streams and the size of a process's terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stdio {
    /// Host to guest.
    pub stdin: Option<StreamId>,
    /// Guest to host.
    pub stdout: Option<StreamId>,
    /// Guest to host; unused with a terminal.
    pub stderr: Option<StreamId>,
    /// Rows and columns, when the process has a terminal.
    pub terminal: Option<(u16, u16)>,
}

impl Stdio {
    fn into_message(self) -> v1::Stdio {
        let id = |stream: Option<StreamId>| stream.map(StreamId::to_vec).unwrap_or_default();
        let (rows, columns) = self.terminal.unwrap_or_default();
        v1::Stdio {
            stdin: id(self.stdin),
            stdout: id(self.stdout),
            stderr: id(self.stderr),
            terminal: self.terminal.is_some(),
            rows: rows.into(),
            columns: columns.into(),
        }
    }
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

    /// Mounts a plugged share and returns where it is in the guest.
    ///
    /// # Errors
    /// When the agent refuses, or names a place outside its own folder.
    pub async fn mount_share(&self, tag: &str, read_only: bool) -> Result<String, Error> {
        const CALL: &str = "mount a share in the guest";
        let request = v1::MountShareRequest { tag: tag.to_owned(), read_only };
        let reply = call(CALL, SLOW, self.client.clone().mount_share(request)).await?;
        if reply.path.len() > limits::PATH_BYTES || !reply.path.starts_with("/run/cloister/") {
            return Err(Error::Reply { call: CALL, why: "the share is not below /run/cloister" });
        }
        Ok(reply.path)
    }

    /// Unmounts a share, which writes back what the guest still holds of it.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn unmount_share(&self, tag: &str) -> Result<(), Error> {
        let request = v1::UnmountShareRequest { tag: tag.to_owned() };
        call("unmount a share in the guest", QUICK, self.client.clone().unmount_share(request)).await?;
        Ok(())
    }

    /// Stacks a container's root filesystem and prepares its process.
    ///
    /// # Errors
    /// When the agent refuses; [`Error::is_not_found`] and [`Error::is_not_executable`] tell about the program.
    pub async fn create_container(
        &self,
        id: &str,
        rootfs: v1::Rootfs,
        spec: Vec<u8>,
        user: &str,
        stdio: Stdio,
    ) -> Result<u32, Error> {
        let request = v1::CreateContainerRequest {
            container_id: id.to_owned(),
            rootfs: Some(rootfs),
            spec,
            user: user.to_owned(),
            stdio: Some(stdio.into_message()),
            ..v1::CreateContainerRequest::default()
        };
        Ok(call("create the container", SLOW, self.client.clone().create_container(request)).await?.pid)
    }

    /// Runs a created container's process.
    ///
    /// # Errors
    /// As [`Agent::create_container`].
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        call("start the container", SLOW, self.client.clone().start_container(request)).await?;
        Ok(())
    }

    /// Starts one more process in a running container.
    ///
    /// # Errors
    /// As [`Agent::create_container`].
    pub async fn exec(
        &self,
        container: &str,
        exec: &str,
        process: Vec<u8>,
        user: &str,
        stdio: Stdio,
    ) -> Result<u32, Error> {
        let request = v1::ExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process,
            user: user.to_owned(),
            stdio: Some(stdio.into_message()),
        };
        Ok(call("start the process", SLOW, self.client.clone().exec(request)).await?.pid)
    }

    /// Waits until a process ends; `exec` is empty for the container's own. Has no deadline.
    ///
    /// # Errors
    /// When the connection breaks or the agent does not know the process.
    pub async fn wait(&self, container: &str, exec: &str) -> Result<Exit, Error> {
        let request = v1::WaitRequest { process: Some(reference(container, exec)) };
        let reply = self
            .client
            .clone()
            .wait(request)
            .await
            .map_err(|status| Error::call("wait for the process", &status))?;
        let reply = reply.into_inner();
        Ok(Exit { code: exit_code(reply.exit_code), oom_killed: reply.oom_killed })
    }

    /// Sends a signal to one process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// When the agent refuses; a process that has ended is not an error.
    pub async fn signal(&self, container: &str, exec: &str, signal: i32, all: bool) -> Result<(), Error> {
        let signal = u32::try_from(signal).unwrap_or_default();
        let request = v1::SignalRequest { process: Some(reference(container, exec)), signal, all };
        match call("send a signal", QUICK, self.client.clone().signal(request)).await {
            Ok(_)
            | Err(Error::Call { code: tonic::Code::NotFound | tonic::Code::FailedPrecondition, .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn resize(&self, container: &str, exec: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let request = v1::ResizeRequest {
            process: Some(reference(container, exec)),
            rows: rows.into(),
            columns: columns.into(),
        };
        call("resize the terminal", QUICK, self.client.clone().resize(request)).await?;
        Ok(())
    }

    /// Ends what is left of a container and unmounts its filesystems.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn delete_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::DeleteContainerRequest { container_id: id.to_owned() };
        call("delete the container", QUICK, self.client.clone().delete_container(request)).await?;
        Ok(())
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

    /// The counters of a container's cgroup.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn stats(&self, container: &str) -> Result<v1::StatsResponse, Error> {
        let request = v1::StatsRequest { container_id: container.to_owned() };
        call("read the container's counters", QUICK, self.client.clone().stats(request)).await
    }

    /// Unpacks the tar archive that arrives on `stream` below `path`; returns once all of it is in place. Has no
    /// deadline of its own: the caller moves the bytes and ends the stream.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn copy_in(&self, container: &str, path: &str, stream: StreamId) -> Result<u64, Error> {
        let reply = self.client.clone().copy_in(copy(container, path, stream)).await;
        Ok(reply.map_err(|status| Error::call("copy into the container", &status))?.into_inner().bytes)
    }

    /// Sends `path` as a tar archive on `stream`; returns once all of it is sent. Has no deadline of its own: the
    /// caller moves the bytes.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn copy_out(&self, container: &str, path: &str, stream: StreamId) -> Result<u64, Error> {
        let reply = self.client.clone().copy_out(copy(container, path, stream)).await;
        Ok(reply.map_err(|status| Error::call("copy out of the container", &status))?.into_inner().bytes)
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

async fn call<T>(
    name: &'static str,
    deadline: Duration,
    reply: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, reply).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(Error::call(name, &status)),
        Err(_) => Err(Error::Deadline { call: name, after: deadline }),
    }
}

fn reference(container: &str, exec: &str) -> v1::ProcessRef {
    v1::ProcessRef { container_id: container.to_owned(), exec_id: exec.to_owned() }
}

fn copy(container: &str, path: &str, stream: StreamId) -> v1::CopyRequest {
    v1::CopyRequest { container_id: container.to_owned(), path: path.to_owned(), stream: stream.to_vec() }
}

/// A guest may send any number; an exit code has eight bits, and a lie must not read as success.
fn exit_code(raw: u32) -> u8 {
    u8::try_from(raw).unwrap_or(u8::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_beyond_eight_bits_never_read_as_success() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(137), 137);
        assert_eq!(exit_code(256), 255);
        assert_eq!(exit_code(u32::MAX), 255);
    }
}
