//! QEMU's control protocol (QMP) over an inherited socket, with descriptor passing.
//!
//! Commands come from the `qapi` crate. The transport is our own because a QEMU newer than that crate's schema
//! must not break on an event the schema does not know, because a line has to be bounded, and because
//! `add-fd` and `getfd` take the descriptor that arrived last (`SCM_RIGHTS`), which needs the commands strictly
//! one after the other. Protocol: docs/interop/qmp-spec.rst in QEMU's source.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use qapi::qmp::{QapiCapabilities, QmpCommand};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::{Error, Result};

/// Longest line accepted from QEMU, in bytes; the largest seen is about 300 KiB (130 block nodes).
const MAX_LINE: usize = 16 << 20;
/// How long one command may take on a busy machine.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// An event QEMU reported.
#[derive(Debug, Clone)]
pub(crate) struct QmpEvent {
    pub name: String,
    pub data: Map<String, Value>,
}

impl QmpEvent {
    /// A string member of the event's data.
    pub fn text(&self, member: &str) -> Option<&str> {
        self.data.get(member)?.as_str()
    }
}

struct Request {
    command: &'static str,
    arguments: Value,
    fd: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value>>,
}

/// A connection to one QEMU. Calls may be dropped at any time: the connection stays usable.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    /// Only copied, never read. A sender kept here would hide the end of the connection from the readers.
    events: broadcast::Receiver<QmpEvent>,
    task: tokio::task::JoinHandle<()>,
    version: (i64, i64, i64),
}

impl Qmp {
    /// Reads the greeting and enters command mode.
    pub async fn connect(socket: StdUnixStream) -> Result<Self> {
        socket.set_nonblocking(true).map_err(Error::os("prepare the QMP socket"))?;
        let stream = UnixStream::from_std(socket).map_err(Error::os("prepare the QMP socket"))?;
        let (sender, events) = broadcast::channel(64);
        let mut connection =
            Connection { stream, buffer: Vec::new(), scanned: 0, events: sender, next_id: 0 };
        let greeting: QapiCapabilities = connection.line().await.and_then(|line| {
            serde_json::from_slice(&line).map_err(|e| Error::Protocol(format!("not a QMP greeting: {e}")))
        })?;
        let v = greeting.QMP.version.qemu;
        let version = (v.major, v.minor, v.micro);
        connection.execute("qmp_capabilities", json!({}), None).await?;
        let (requests, queue) = mpsc::channel(16);
        let task = tokio::spawn(connection.serve(queue));
        Ok(Self { requests, events, task, version })
    }

    /// QEMU's version.
    pub fn version(&self) -> (i64, i64, i64) {
        self.version
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.resubscribe()
    }

    /// Runs a command of the schema.
    pub async fn run<C: QmpCommand>(&self, command: C) -> Result<C::Ok> {
        let arguments = serde_json::to_value(&command).map_err(|e| Error::Protocol(e.to_string()))?;
        let answer = self.send(C::NAME, arguments, None).await?;
        serde_json::from_value(answer)
            .map_err(|e| Error::Protocol(format!("{} answered unexpectedly: {e}", C::NAME)))
    }

    /// Runs a command whose arguments are easier to read as JSON than as the schema's nested unions.
    pub async fn call(&self, command: &'static str, arguments: Value) -> Result<Value> {
        self.send(command, arguments, None).await
    }

    /// Gives QEMU a descriptor; blockdev filenames and `-object`s refer to it by the path returned.
    pub async fn add_fd(&self, fd: OwnedFd) -> Result<FdSet> {
        let answer = self.send("add-fd", json!({}), Some(fd)).await?;
        match answer.get("fdset-id").and_then(Value::as_i64) {
            Some(id) => Ok(FdSet(id)),
            None => Err(Error::Protocol("add-fd answered no fdset-id".into())),
        }
    }

    /// Gives QEMU a descriptor under a name, for character devices and taps, which take it from there.
    pub async fn get_fd(&self, name: &str, fd: OwnedFd) -> Result<()> {
        self.send("getfd", json!({ "fdname": name }), Some(fd)).await.map(drop)
    }

    async fn send(&self, command: &'static str, arguments: Value, fd: Option<OwnedFd>) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Protocol(format!("connection closed during {command}"));
        let exchange = async {
            self.requests.send(Request { command, arguments, fd, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(COMMAND_LIMIT, exchange)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { what: format!("QMP {command}"), limit: COMMAND_LIMIT }))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A descriptor QEMU holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FdSet(i64);

impl FdSet {
    /// The file name that opens it.
    pub fn path(self) -> String {
        format!("/dev/fdset/{}", self.0)
    }

    /// Its number, for `remove-fd`.
    pub fn id(self) -> i64 {
        self.0
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no line end.
    scanned: usize,
    events: broadcast::Sender<QmpEvent>,
    next_id: u64,
}

impl Connection {
    async fn serve(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            tokio::select! {
                request = queue.recv() => {
                    let Some(Request { command, arguments, fd, reply }) = request else { return };
                    let answer = self.execute(command, arguments, fd).await;
                    let broken = matches!(answer, Err(Error::Protocol(_) | Error::Os { .. }));
                    // The caller may have given up waiting.
                    let _ = reply.send(answer);
                    if broken {
                        return;
                    }
                }
                line = self.line() => {
                    let Ok(line) = line else { return };
                    self.publish(&line);
                }
            }
        }
    }

    async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        text.push('\n');
        if let Some(fd) = fd {
            // QEMU keeps the descriptor that came with the last bytes; a space between commands means nothing.
            let stream = &self.stream;
            stream
                .async_io(Interest::WRITABLE, || send_with_fd(stream.as_fd(), b" ", fd.as_fd()))
                .await
                .map_err(Error::os("pass a descriptor to QEMU"))?;
        }
        self.stream.write_all(text.as_bytes()).await.map_err(Error::os("write to QEMU"))?;
        loop {
            let line = self.line().await?;
            let mut message: Map<String, Value> = serde_json::from_slice(&line)
                .map_err(|e| Error::Protocol(format!("not a QMP message: {e}")))?;
            if message.contains_key("event") {
                self.publish(&line);
                continue;
            }
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                return Err(Error::Protocol(format!("{command} got the answer of another command")));
            }
            if let Some(value) = message.remove("return") {
                return Ok(value);
            }
            let reason = message.get("error").and_then(|e| e.get("desc")).and_then(Value::as_str);
            return Err(Error::Refused {
                command: command.into(),
                reason: reason.unwrap_or("no reason given").replace('\n', " "),
            });
        }
    }

    fn publish(&self, line: &[u8]) {
        let Ok(Value::Object(mut message)) = serde_json::from_slice(line) else { return };
        let Some(Value::String(name)) = message.remove("event") else { return };
        let data = match message.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        // Nobody listening is fine.
        let _ = self.events.send(QmpEvent { name, data });
    }

    /// The next line; dropping the future loses nothing.
    async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|&b| b == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                self.scanned = 0;
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(Error::Protocol("a line longer than 16 MiB".into()));
            }
            self.stream.readable().await.map_err(Error::os("read from QEMU"))?;
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return Err(Error::Protocol("QEMU closed the connection".into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(Error::Os { what: "read from QEMU", source }),
            }
        }
    }
}

fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    const GREETING: &str = "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":2,\"minor\":0,\"major\":10},\"package\":\"\"},\"capabilities\":[]}}\n";

    /// A peer that greets, accepts `qmp_capabilities`, then sends `after` in answer to the next command.
    fn peer(after: &'static str) -> StdUnixStream {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut theirs = theirs;
            let mut line = String::new();
            theirs.write_all(GREETING.as_bytes()).unwrap();
            reader.read_line(&mut line).unwrap();
            theirs.write_all(b"{\"return\":{},\"id\":1}\n").unwrap();
            reader.read_line(&mut line).unwrap();
            let _ = theirs.write_all(after.as_bytes());
        });
        ours
    }

    #[tokio::test]
    async fn events_between_command_and_answer_are_published_and_unknown_ones_survive() {
        let text = "{\"event\":\"FROM_THE_FUTURE\",\"data\":{\"x\":\"y\"},\"timestamp\":{}}\n{\"return\":{\"a\":1},\"id\":2}\n";
        let qmp = Qmp::connect(peer(text)).await.unwrap();
        assert_eq!(qmp.version(), (10, 0, 2));
        let mut events = qmp.events();
        assert_eq!(qmp.call("query-x", json!({})).await.unwrap(), json!({"a": 1}));
        let event = events.recv().await.unwrap();
        assert_eq!((event.name.as_str(), event.text("x")), ("FROM_THE_FUTURE", Some("y")));
    }

    #[tokio::test]
    async fn a_refusal_is_one_line() {
        let text = "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\\nway\"},\"id\":2}\n";
        let qmp = Qmp::connect(peer(text)).await.unwrap();
        let error = qmp.call("device_add", json!({})).await.unwrap_err().to_string();
        assert_eq!(error, "QEMU refused device_add: no way");
    }

    #[tokio::test]
    async fn a_closed_connection_and_a_wrong_id_are_errors() {
        let qmp = Qmp::connect(peer("")).await.unwrap();
        assert!(matches!(qmp.call("x", json!({})).await, Err(Error::Protocol(_))));
        let qmp = Qmp::connect(peer("{\"return\":{},\"id\":7}\n")).await.unwrap();
        assert!(matches!(qmp.call("x", json!({})).await, Err(Error::Protocol(_))));
    }
}
