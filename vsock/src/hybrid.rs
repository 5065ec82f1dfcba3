//! The hybrid socket: host programs connect to a Unix socket, say `CONNECT <port>\n` and read `OK <host port>\n`, as with Firecracker
//! and Cloud Hypervisor. If the guest refuses, the socket just closes.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

use crate::error::Error;
use crate::token::Token;

/// Longest greeting: `CONNECT 4294967295\n`, and some room.
const MAX_GREETING: usize = 32;
/// Programs that may be between `connect` and `CONNECT` at a time.
const MAX_GREETINGS: usize = 64;
/// How long accepting rests when the host is out of descriptors.
const REST: Duration = Duration::from_millis(100);

/// Connects to what listens on a port of the host.
pub(crate) type HostPorts = Box<dyn FnMut(u32) -> Option<UnixStream> + Send>;

/// The ports of the host are the sockets whose paths are that of the hybrid socket and `_<port>`.
pub(crate) fn host_ports(socket: Option<PathBuf>) -> HostPorts {
    Box::new(move |port| {
        let mut path = socket.clone()?.into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path).ok()?;
        // Not blocking: a listener whose queue is full refuses.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        connect(&socket, &address).ok()?;
        Some(UnixStream::from(socket))
    })
}

/// The listener and the connections that have not said where they want to go.
pub(crate) struct Hybrid {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, so that only our own is removed.
    file: (u64, u64),
    epoll: Arc<OwnedFd>,
    greetings: HashMap<u32, (UnixStream, Instant)>,
    next: u32,
    timeout: Duration,
    /// The listener is out of the epoll set until then.
    rests_until: Option<Instant>,
}

impl Hybrid {
    /// Listens. The socket file is for this user only.
    pub(crate) fn listen(path: &Path, epoll: Arc<OwnedFd>, timeout: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Listen { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let set_up = || -> io::Result<(u64, u64)> {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let meta = std::fs::symlink_metadata(path)?;
            Ok((meta.dev(), meta.ino()))
        };
        let file = set_up().map_err(failed)?;
        let mut hybrid = Self {
            listener,
            path: path.to_owned(),
            file,
            epoll,
            greetings: HashMap::new(),
            next: 0,
            timeout,
            rests_until: None,
        };
        hybrid.watch_listener().map_err(|e| failed(e.into()))?;
        Ok(hybrid)
    }

    fn watch_listener(&mut self) -> Result<(), Errno> {
        self.rests_until = None;
        epoll::add(
            self.epoll.as_fd(),
            &self.listener,
            epoll::EventData::new_u64(Token::Listener.pack()),
            epoll::EventFlags::IN,
        )
    }

    fn rest(&mut self) {
        let _ = epoll::delete(self.epoll.as_fd(), &self.listener);
        self.rests_until = Some(Instant::now() + REST);
    }

    /// Accepts what waits.
    pub(crate) fn on_listener(&mut self) {
        loop {
            if self.greetings.len() >= MAX_GREETINGS {
                return self.rest();
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.greet(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, path = %self.path.display(), "vsock: cannot accept on the hybrid socket");
                    return self.rest();
                }
            }
        }
    }

    fn greet(&mut self, stream: UnixStream) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let data = epoll::EventData::new_u64(Token::Greeting(id).pack());
        // Edge-triggered: half a greeting stays in the socket, and must not wake us until more comes.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if epoll::add(self.epoll.as_fd(), &stream, data, flags).is_ok() {
            self.greetings.insert(id, (stream, Instant::now() + self.timeout));
        }
    }

    /// A program has spoken. Returns its stream and the port it wants; nothing after the greeting has been read.
    pub(crate) fn on_greeting(&mut self, id: u32) -> Option<(UnixStream, u32)> {
        let (stream, _) = self.greetings.get(&id)?;
        match read_greeting(stream) {
            Greeting::Unfinished => None,
            Greeting::Port(port) => {
                let (stream, _) = self.greetings.remove(&id)?;
                let _ = epoll::delete(self.epoll.as_fd(), &stream);
                Some((stream, port))
            }
            Greeting::Wrong => {
                self.greetings.remove(&id);
                None
            }
        }
    }

    /// The next time something here runs out.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.greetings.values().map(|(_, at)| *at).chain(self.rests_until).min()
    }

    /// Ends what has run out.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.greetings.retain(|_, (_, at)| *at > now);
        if self.rests_until.is_some_and(|at| at <= now)
            && let Err(error) = self.watch_listener()
        {
            tracing::warn!(%error, path = %self.path.display(), "vsock: cannot watch the hybrid socket");
            self.rests_until = Some(now + REST);
        }
    }
}

impl Drop for Hybrid {
    fn drop(&mut self) {
        let ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Unfinished,
    Port(u32),
    Wrong,
}

fn read_greeting(stream: &UnixStream) -> Greeting {
    let mut line = [0u8; MAX_GREETING];
    let seen = match recv(stream, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => return Greeting::Wrong,
        Ok((seen, _)) => seen,
        Err(Errno::AGAIN | Errno::INTR) => return Greeting::Unfinished,
        Err(_) => return Greeting::Wrong,
    };
    let text = &line[..seen.min(MAX_GREETING)];
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        return if text.len() < MAX_GREETING { Greeting::Unfinished } else { Greeting::Wrong };
    };
    let Some(port) = parse(&text[..end]) else { return Greeting::Wrong };
    // Take the line and nothing more: what follows is for the guest.
    let mut taken = vec![0; end + 1];
    match recv(stream, taken.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((count, _)) if count == end + 1 => Greeting::Port(port),
        _ => Greeting::Wrong,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_greeting_is_read_to_its_end_and_no_further() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        program.write_all(b"CONN").unwrap();
        assert_eq!(read_greeting(&ours), Greeting::Unfinished);
        program.write_all(b"ECT 1024\nfor the guest").unwrap();
        assert_eq!(read_greeting(&ours), Greeting::Port(1024));
        drop(program);
        let mut rest = String::new();
        (&ours).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "for the guest");
    }

    #[test]
    fn anything_else_is_wrong() {
        let long = "CONNECT ".to_owned() + &"1".repeat(100);
        for wrong in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "connect 1\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            &long,
        ] {
            let (mut program, ours) = UnixStream::pair().unwrap();
            program.write_all(wrong.as_bytes()).unwrap();
            assert_eq!(read_greeting(&ours), Greeting::Wrong, "{wrong:?}");
        }
    }

    #[test]
    fn the_socket_is_for_its_owner_and_goes_with_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.sock");
        let epoll = || Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let hybrid = Hybrid::listen(&path, epoll(), Duration::from_secs(1)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(Hybrid::listen(&path, epoll(), Duration::from_secs(1)).is_err(), "taken");
        assert!(path.exists());
        drop(hybrid);
        assert!(!path.exists());
    }
}
