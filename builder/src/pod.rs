//! A builder in a pod: what the pod's shim tells the node's build driver, and the driver the shim.
//!
//! Two files in the pod's private folder, which only root can enter:
//! ```text
//! builder.json   facts, written before the container is there
//! builder.sock   the shim listens from then on
//! ```
//! What a connection is for is its first byte: `c` for messages of the driver, `i` for what arrives on the
//! container's standard input. A message is its kind, a length (u32, little endian, at most [`MAX_MESSAGE`]) and so many
//! bytes: `l` is a part of the container's log, `e` ends the container with the exit code in its one byte.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cloister_sandbox::Dialer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Annotation, `"true"`: the pod's container is a builder.
pub const BUILDER: &str = "cloister.dev/builder";
/// Annotation: `None` for a machine without any interface, otherwise it has the pod's.
pub const NETWORK: &str = "cloister.dev/network";
/// Annotation: which cache disk of the namespace it has; without it buildkitd's state goes with the machine.
pub const CACHE_KEY: &str = "cloister.dev/cache-key";
/// Annotation: bytes of the disk with buildkitd's state.
pub const CACHE_BYTES: &str = "cloister.dev/cache-bytes";
/// Annotation: seconds after which the machine ends, whatever it does.
pub const DEADLINE: &str = "cloister.dev/deadline-seconds";
/// Mounts below this are for the host's side only.
pub const HOST: &str = "/run/cloister/host";

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 64 << 10;

const FACTS: &str = "builder.json";
const SOCKET: &str = "builder.sock";
/// Most bytes of the facts.
const MAX_FACTS: u64 = 1 << 20;

const CONTROL: u8 = b'c';
const INPUT: u8 = b'i';
const LOG: u8 = b'l';
const END: u8 = b'e';

/// What the shim knows of a builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Kubernetes' namespace, a slash, the pod's name.
    pub pod: String,
    /// The container's id, in the guest too.
    pub container: String,
    /// Bytes of memory for buildkitd and all steps together.
    pub memory_bytes: u64,
    /// Bytes of the disk with buildkitd's state.
    pub disk_bytes: u64,
    /// Whether an earlier build has left something on it.
    pub warm: bool,
    /// Where on the host is what the pod mounts below [`HOST`], by the path below it.
    pub mounts: BTreeMap<PathBuf, PathBuf>,
    /// How to reach the guest.
    pub dialer: Dialer,
}

impl Facts {
    /// Writes the facts into the pod's folder, in one step.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let temporary = folder.join(".builder.json");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, folder.join(FACTS))
    }

    /// Reads them; `None` as long as there are none.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        use io::Read as _;
        let file = match fs::File::open(folder.join(FACTS)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FACTS).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

/// Where the shim of the pod with this folder listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// The driver's side of a pod.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Connects to the shim of the pod with this folder.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn connect(folder: &Path) -> io::Result<Self> {
        Ok(Self(open(folder, CONTROL).await?))
    }

    /// Adds to the container's log. Waits while its reader does; the caller bounds the time.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn log(&mut self, text: &[u8]) -> io::Result<()> {
        for part in text.chunks(MAX_MESSAGE) {
            self.send(LOG, part).await?;
        }
        Ok(())
    }

    /// Ends the container: buildkitd kindly, its disk written back and kept, then the machine.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn end(mut self, code: u8) -> io::Result<()> {
        self.send(END, &[code]).await?;
        self.0.shutdown().await
    }

    async fn send(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.0.write_u8(kind).await?;
        self.0.write_u32_le(length).await?;
        self.0.write_all(bytes).await
    }
}

/// What arrives on the container's standard input, until its end. One connection at a time gets it.
///
/// # Errors
/// When the shim does not listen.
pub async fn input(folder: &Path) -> io::Result<UnixStream> {
    open(folder, INPUT).await
}

async fn open(folder: &Path, purpose: u8) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket(folder)).await?;
    stream.write_u8(purpose).await?;
    Ok(stream)
}

/// What a connection that the shim has taken is for.
#[derive(Debug)]
pub enum Client {
    /// Messages of the driver.
    Control(Messages),
    /// The driver wants the container's standard input.
    Input(UnixStream),
}

impl Client {
    /// Finds out what a connection is for. The caller bounds the time.
    ///
    /// # Errors
    /// When it says nothing that is known.
    pub async fn greet(mut stream: UnixStream) -> io::Result<Self> {
        match stream.read_u8().await? {
            CONTROL => Ok(Self::Control(Messages(stream))),
            INPUT => Ok(Self::Input(stream)),
            _ => Err(invalid("an unknown purpose")),
        }
    }
}

/// Messages of the driver.
#[derive(Debug)]
pub struct Messages(UnixStream);

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A part of the container's log.
    Log(Vec<u8>),
    /// The container is to end with this exit code.
    End(u8),
}

impl Messages {
    /// The next message; `None` when the driver has gone.
    ///
    /// # Errors
    /// When it is no message.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        let kind = match self.0.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = usize::try_from(self.0.read_u32_le().await?).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(invalid("a message that is too long"));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await?;
        match (kind, bytes.as_slice()) {
            (LOG, _) => Ok(Some(Message::Log(bytes))),
            (END, [code]) => Ok(Some(Message::End(*code))),
            _ => Err(invalid("a message of an unknown kind")),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn what_the_driver_says_reaches_the_shim() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        let mut control = Control::connect(folder.path()).await.unwrap();
        let Client::Control(mut messages) = Client::greet(listener.accept().await.unwrap().0).await.unwrap()
        else {
            panic!("not the purpose that was named")
        };
        let long = vec![b'x'; MAX_MESSAGE + 1];
        let write = async {
            control.log(&long).await.unwrap();
            control.end(3).await.unwrap();
        };
        let read = async {
            let mut all = Vec::new();
            while let Some(message) = messages.next().await.unwrap() {
                all.push(message);
            }
            all
        };
        let ((), all) = tokio::join!(write, read);
        let log = |length| Message::Log(vec![b'x'; length]);
        assert_eq!(all, [log(MAX_MESSAGE), log(1), Message::End(3)]);
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        for bytes in [&b"x"[..], b"cl\xff\xff\xff\xff", b"ce\0\0\0\0", b"cz\x01\0\0\0a"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).await.unwrap();
            let refused = match Client::greet(ours).await {
                Ok(Client::Control(mut messages)) => messages.next().await.is_err(),
                Ok(Client::Input(_)) => false,
                Err(_) => true,
            };
            assert!(refused, "{bytes:?}");
        }
    }

    #[test]
    fn facts_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Facts::read(folder.path()).unwrap(), None);
        let dialer = serde_json::from_str("\"/run/x/door\"").unwrap();
        let mounts = [("spec".into(), "/var/lib/kubelet/pods/u/volumes/v".into())].into();
        let facts = Facts {
            pod: "team/app-1".into(),
            container: "abc".into(),
            memory_bytes: 1 << 30,
            disk_bytes: 8 << 30,
            warm: true,
            mounts,
            dialer,
        };
        facts.write(folder.path()).unwrap();
        assert_eq!(Facts::read(folder.path()).unwrap(), Some(facts));
    }
}
