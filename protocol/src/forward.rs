//! The request a connection to [`crate::ports::FORWARD`] begins with, and its answer.
//!
//! Two bytes name the TCP port of a server in the guest (big endian); the agent connects to it on 127.0.0.1, then on
//! ::1. Port 0, which no server has, says that a unix socket follows: [`Socket::encode`]. The answer is one byte:
//! [`CONNECTED`], after which the connection is the server's with half-close both ways, or [`REFUSED`], after which it is
//! closed. An agent that does not know unix sockets finds no server on port 0 and refuses.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits;

/// A server has accepted.
pub const CONNECTED: u8 = 1;

/// Nothing listens there.
pub const REFUSED: u8 = 0;

/// The port that says: a unix socket.
pub const UNIX: u16 = 0;

/// A unix socket in a container's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The container's name.
    pub container: String,
    /// Absolute path inside the root filesystem as the container sees it; symbolic links never lead out of it.
    pub path: String,
}

impl Socket {
    /// Names a socket; `None` when the container's name is none, or the path is not absolute or above
    /// [`limits::PATH_BYTES`].
    pub fn new(container: &str, path: &str) -> Option<Self> {
        let good = limits::is_id(container)
            && path.starts_with('/')
            && path.len() <= limits::PATH_BYTES
            && !path.contains('\0');
        good.then(|| Self { container: container.to_owned(), path: path.to_owned() })
    }

    /// The whole request: [`UNIX`], then name and path, each after its length in bytes (u16, big endian).
    pub fn encode(&self) -> Vec<u8> {
        let mut request = UNIX.to_be_bytes().to_vec();
        for text in [&self.container, &self.path] {
            // Both are far below: see `new`.
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            request.extend(length.to_be_bytes());
            request.extend(text.bytes());
        }
        request
    }

    /// Reads what follows [`UNIX`]. The caller bounds the time.
    ///
    /// # Errors
    /// When the connection ends early or names no socket.
    pub async fn read(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let container = text(connection, limits::ID_BYTES).await?;
        let path = text(connection, limits::PATH_BYTES).await?;
        Self::new(&container, &path)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the request names no unix socket"))
    }
}

async fn text(connection: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<String> {
    let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = usize::from(connection.read_u16().await?);
    if length > limit {
        return Err(invalid("a name in the request is too long"));
    }
    let mut bytes = vec![0; length];
    connection.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| invalid("a name in the request is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> io::Result<(u16, Socket)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut bytes = bytes;
        runtime.block_on(async { Ok((bytes.read_u16().await?, Socket::read(&mut bytes).await?)) })
    }

    #[test]
    fn a_socket_arrives_as_it_was_named() {
        let socket = Socket::new("builder", "/run/buildkit/buildkitd.sock").unwrap();
        assert_eq!(read(&socket.encode()).unwrap(), (UNIX, socket));
    }

    #[test]
    fn what_names_no_socket_is_refused() {
        for (container, path) in [("", "/a"), ("../x", "/a"), ("c", ""), ("c", "a"), ("c", "/a\0b")] {
            assert_eq!(Socket::new(container, path), None, "{container:?} {path:?}");
        }
        assert_eq!(Socket::new("c", &format!("/{}", "x".repeat(limits::PATH_BYTES))), None);
        let long = [&[0, 0, 0, 1, b'c'], &u16::MAX.to_be_bytes()[..], &[b'x'; 70_000]].concat();
        assert!(read(&long).unwrap_err().to_string().contains("too long"));
        assert!(read(&[0, 0, 0, 1, b'c', 0, 2, b'a', b'b']).is_err(), "not absolute");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((port, socket)) = read(&bytes) {
                let mut again = socket.encode();
                again[..2].copy_from_slice(&port.to_be_bytes());
                prop_assert!(bytes.starts_with(&again));
            }
        }
    }
}
