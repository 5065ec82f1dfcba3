//! Where the build driver turns to: the socket in the pod's folder.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_builder::pod::{self, Client, Message, Messages};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use super::log::Log;
use super::{Ask, Handle};
use crate::failure::{Failure, Result};

/// Connections at once.
const CLIENTS: usize = 8;
/// How long a client may take to say what it wants.
const GREETING: Duration = Duration::from_secs(5);
/// How long the log's reader may be away before anything is lost.
const READER: Duration = Duration::from_secs(10);
/// The pause after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening socket, and everyone who is connected; dropping it ends them.
pub struct Desk {
    path: PathBuf,
    task: JoinHandle<()>,
}

struct Shared {
    log: Log,
    input: Mutex<Option<pipe::Receiver>>,
    handle: Handle,
}

impl Desk {
    /// Listens in the pod's folder. `output` is the container's log, `input` its standard input.
    ///
    /// # Errors
    /// When the socket can't be made, or the input is no FIFO.
    pub fn open(
        folder: &Path,
        handle: Handle,
        output: Option<Box<dyn Write + Send>>,
        input: Option<OwnedFd>,
    ) -> Result<Self> {
        let path = pod::socket(folder);
        let failed = |what: &str, error| Failure::Other(format!("cannot {what} {}: {error}", path.display()));
        // One that failed may have left it.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", error));
            }
            _ => {}
        }
        let input = input.map(pipe::Receiver::from_owned_fd).transpose();
        let input = input.map_err(|error| failed("take the container's input for", error))?;
        let listener = UnixListener::bind(&path).map_err(|error| failed("listen on", error))?;
        let shared = Arc::new(Shared { log: Log::start(output, READER)?, input: Mutex::new(input), handle });
        Ok(Self { path: path.clone(), task: tokio::spawn(serve(listener, shared)) })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "cannot remove the builder's socket");
        }
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < CLIENTS => {
                    clients.spawn(attend(stream, Arc::clone(&shared)));
                }
                Ok(_) => tracing::warn!("more than {CLIENTS} connections to a builder"),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn attend(stream: UnixStream, shared: Arc<Shared>) {
    let outcome = match tokio::time::timeout(GREETING, Client::greet(stream)).await {
        Ok(Ok(Client::Control(messages))) => control(messages, &shared).await,
        Ok(Ok(Client::Input(stream))) => input(stream, &shared).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client of the builder is gone");
    }
}

async fn control(mut messages: Messages, shared: &Shared) -> std::io::Result<()> {
    while let Some(message) = messages.next().await? {
        match message {
            Message::Log(bytes) => shared.log.write(bytes).await,
            Message::End(code) => shared.handle.ask(Ask { code, kind: true }),
        }
    }
    Ok(())
}

/// Gives the container's input away, to one at a time.
async fn input(mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let Ok(mut source) = shared.input.try_lock() else {
        return Err(std::io::Error::other("another one reads the container's input"));
    };
    if let Some(fifo) = source.as_mut() {
        let (mut reader, mut writer) = stream.split();
        let mut nothing = [0];
        tokio::select! {
            copied = tokio::io::copy(fifo, &mut writer) => copied.map(drop)?,
            // It says nothing: this is its end.
            _ = reader.read(&mut nothing) => return Ok(()),
        }
        *source = None;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc;

    use cloister_builder::pod::Control;

    use super::*;

    struct Lines(mpsc::Sender<Vec<u8>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_driver_logs_ends_and_gets_the_input() {
        let folder = tempfile::tempdir().unwrap();
        let (handle, mut keeper) = Handle::new("c".to_owned());
        let (sender, lines) = mpsc::channel();
        let (fifo, writer) = rustix::pipe::pipe().unwrap();
        let desk = Desk::open(folder.path(), handle, Some(Box::new(Lines(sender))), Some(fifo)).unwrap();

        let mut first = pod::input(folder.path()).await.unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"one").unwrap();
        let mut three = [0; 3];
        first.read_exact(&mut three).await.unwrap();
        drop(first);
        // Until the one before is known to be gone, there is nothing for the next.
        let mut second = loop {
            let mut next = pod::input(folder.path()).await.unwrap();
            let refused = tokio::time::timeout(Duration::from_millis(50), next.read(&mut three)).await;
            if refused.is_err() {
                break next;
            }
        };
        writer.write_all(b"two").unwrap();
        drop(writer);
        let mut rest = String::new();
        second.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&three, rest.as_str()), (b"one", "two"));

        let mut control = Control::connect(folder.path()).await.unwrap();
        control.log(b"#1 done\n").await.unwrap();
        control.end(3).await.unwrap();
        assert_eq!(keeper.asked().await, Ask { code: 3, kind: true });
        assert_eq!(lines.recv().unwrap(), b"#1 done\n");
        drop(desk);
        // The log's end is seen, whoever is still connected.
        assert!(tokio::task::spawn_blocking(move || lines.recv()).await.unwrap().is_err());
        assert!(Control::connect(folder.path()).await.is_err());
    }
}
