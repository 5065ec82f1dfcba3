//! SSH agents of a build: `RUN --mount=type=ssh`.
//!
//! A step may have an agent list its keys and sign with them. Everything else of the agent protocol (adding and removing
//! keys, locking) is answered with a failure here, as the build is not trusted with the user's agent. Source:
//! draft-ietf-sshm-ssh-agent, sections 3 and 6.1.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::Ssh;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::client::error::reason;

/// The id of `RUN --mount=type=ssh` without one.
pub const DEFAULT_AGENT: &str = "default";
/// Longest message of the agent protocol, in bytes, as OpenSSH has it.
const MAX_MESSAGE: usize = 256 << 10;
/// How long an agent may take to answer; it may ask its user.
const ANSWER: Duration = Duration::from_secs(120);
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// The agents of one build: sockets by id.
#[derive(Debug, Clone, Default)]
pub struct SshAgents(BTreeMap<String, PathBuf>);

impl SshAgents {
    /// Adds the agent that listens on `socket`; an empty `id` means [`DEFAULT_AGENT`].
    #[must_use]
    pub fn with(mut self, id: &str, socket: impl Into<PathBuf>) -> Self {
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        self.0.insert(id.to_owned(), socket.into());
        self
    }

    fn socket(&self, id: &str) -> Result<&Path, Status> {
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        let socket = self.0.get(id).map(PathBuf::as_path);
        socket.ok_or_else(|| Status::not_found(format!("SSH agent {}: not offered", reason(id))))
    }
}

#[tonic::async_trait]
impl Ssh for SshAgents {
    type ForwardAgentStream = ReceiverStream<Result<BytesMessage, Status>>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.socket(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let socket = self.socket(id(request.metadata()))?;
        let agent = UnixStream::connect(socket)
            .await
            .map_err(|error| Status::unavailable(format!("SSH agent {}: {error}", socket.display())))?;
        let (answers, stream) = mpsc::channel(4);
        let asked = request.into_inner();
        // Ends with the step: its side of the stream closes, or nobody takes the answers.
        tokio::spawn(async move {
            if let Err(status) = forward(asked, agent, &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn id(metadata: &MetadataMap) -> &str {
    metadata.get("buildkit.ssh.id").and_then(|id| id.to_str().ok()).unwrap_or_default()
}

type Answers = mpsc::Sender<Result<BytesMessage, Status>>;

/// Carries one message after the other to the agent and its answer back.
async fn forward(
    mut asked: Streaming<BytesMessage>,
    mut agent: UnixStream,
    answers: &Answers,
) -> Result<(), Status> {
    let mut pending = Vec::new();
    while let Some(piece) = asked.message().await? {
        pending.extend_from_slice(&piece.data);
        while let Some(message) = next(&mut pending)? {
            let answer = if matches!(message.get(4), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST))) {
                tokio::time::timeout(ANSWER, ask(&mut agent, &message))
                    .await
                    .map_err(|_| Status::deadline_exceeded("the SSH agent does not answer"))?
                    .map_err(|error| Status::unavailable(format!("SSH agent: {error}")))?
            } else {
                FAILURE.to_vec()
            };
            if answers.send(Ok(BytesMessage { data: answer })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Takes the first whole message, its length in front.
fn next(pending: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Status> {
    let Some(head) = pending.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*head) as usize;
    if len == 0 || len > MAX_MESSAGE {
        return Err(Status::invalid_argument("not a message to an SSH agent"));
    }
    if pending.len() < 4 + len {
        return Ok(None);
    }
    let rest = pending.split_off(4 + len);
    Ok(Some(std::mem::replace(pending, rest)))
}

async fn ask(agent: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    agent.write_all(message).await?;
    let len = agent.read_u32().await?;
    if len == 0 || len as usize > MAX_MESSAGE {
        return Err(io::Error::other("an answer of impossible length"));
    }
    let mut answer = len.to_be_bytes().to_vec();
    answer.resize(4 + len as usize, 0);
    agent.read_exact(&mut answer[4..]).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole_and_bounded() {
        let mut pending = vec![0, 0, 0, 1, REQUEST_IDENTITIES, 0, 0];
        assert_eq!(next(&mut pending).unwrap(), Some(vec![0, 0, 0, 1, REQUEST_IDENTITIES]));
        assert_eq!(next(&mut pending).unwrap(), None);
        assert_eq!(pending, [0, 0]);
        assert!(next(&mut vec![0, 0, 0, 0]).is_err());
        assert!(next(&mut vec![0, 4, 0, 1, 1]).is_err());
    }

    #[test]
    fn an_agent_that_was_not_offered_is_not_found() {
        let agents = SshAgents::default().with("", "/run/agent");
        assert_eq!(agents.socket("default").unwrap(), Path::new("/run/agent"));
        assert_eq!(agents.socket("git").unwrap_err().code(), tonic::Code::NotFound);
    }
}
