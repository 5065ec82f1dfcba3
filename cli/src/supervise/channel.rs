//! What a command and the supervisor it started say to each other: one JSON document a line, over a socket pair that
//! is also each one's way to notice the other's death.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cloister_sandbox::{Kernel, Timing};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::value::Volume;
use crate::vm::Record;

/// From the command to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The first one: what to run.
    Start(Box<Plan>),
    /// Pass a signal on to the container's process.
    Signal(i32),
    /// The terminal has this many rows and columns now.
    Resize(u16, u16),
}

/// From the supervisor to the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The container's process runs.
    Started {
        /// How long each step took.
        timings: Vec<Timing>,
    },
    /// Everything is over and taken apart.
    Ended {
        /// What to exit with.
        code: u8,
        /// Why, when it was not the process's own end.
        reason: Option<String>,
    },
}

/// Everything a supervisor needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The record to go on with.
    pub record: Record,
    /// The guest kernel.
    pub kernel: Kernel,
    /// Folder of the image store.
    pub store: PathBuf,
    /// Digest of the image's manifest in that store.
    pub image: String,
    /// The user's wishes; bind mounts are added by the supervisor.
    pub wishes: cloister_sandbox::spec::Wishes,
    /// docker's `USER`.
    pub user: String,
    /// Folders and files of the host to show.
    pub volumes: Vec<Volume>,
    /// Memory of the machine in bytes.
    pub memory: u64,
    /// Processors of the machine.
    pub cpus: u32,
    /// Hardware virtualisation or emulation.
    pub accel: cloister_vmm::Accel,
    /// Whether standard input is connected.
    pub interactive: bool,
    /// Rows and columns of the terminal, when the process gets one.
    pub terminal: Option<(u16, u16)>,
    /// Whether nobody waits: output goes to the log only.
    pub detach: bool,
}

/// One end of the channel.
pub struct Channel {
    reader: Receiver,
    writer: Sender,
}

/// Reads documents.
pub struct Receiver {
    lines: BufReader<OwnedReadHalf>,
    partial: Vec<u8>,
}

/// Writes documents.
pub struct Sender(OwnedWriteHalf);

impl Channel {
    /// Takes one end of a socket pair.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(stream)?.into_split();
        Ok(Self {
            reader: Receiver { lines: BufReader::new(reader), partial: Vec::new() },
            writer: Sender(writer),
        })
    }

    /// Both directions.
    pub fn split(self) -> (Receiver, Sender) {
        (self.reader, self.writer)
    }
}

impl Receiver {
    /// The next document; `None` when the other side is gone. May be dropped and called again.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.lines.read_until(b'\n', &mut self.partial).await?;
        if self.partial.last() != Some(&b'\n') {
            return Ok(None);
        }
        let document = serde_json::from_slice(&self.partial);
        self.partial.clear();
        Ok(Some(document?))
    }
}

impl Sender {
    /// Sends one document.
    pub async fn send<T: Serialize>(&mut self, document: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(document)?;
        line.push(b'\n');
        self.0.write_all(&line).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_arrive_in_order_and_death_is_noticed() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut receiver, _keep) = Channel::new(a.into()).unwrap().split();
        let (peer, mut sender) = Channel::new(b.into()).unwrap().split();
        sender.send(&Order::Signal(15)).await.unwrap();
        sender.send(&Order::Resize(24, 80)).await.unwrap();
        assert!(matches!(receiver.receive::<Order>().await.unwrap(), Some(Order::Signal(15))));
        assert!(matches!(receiver.receive::<Order>().await.unwrap(), Some(Order::Resize(24, 80))));
        drop((peer, sender));
        assert!(receiver.receive::<Order>().await.unwrap().is_none());
    }
}
