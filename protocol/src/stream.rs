//! The handshake that begins a raw stream.
//!
//! The host connects to vsock port [`crate::ports::STREAMS`] and sends [`HELLO_BYTES`] bytes: `CLST`, MAJOR and MINOR
//! of the protocol (u16, little endian), and the [`StreamId`] that a later call names. The guest answers one byte,
//! [`ACCEPTED`] or another value that says why not, and the connection carries data from then on.
//! `shutdown(WRITE)` ends a direction.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::version::{VERSION, Version, VersionError};

/// The first bytes of every stream.
pub const MAGIC: [u8; 4] = *b"CLST";
/// Length of what the host sends.
pub const HELLO_BYTES: usize = 24;
/// The guest's answer: the stream is held until a call names it.
pub const ACCEPTED: u8 = 1;
/// The guest's answer: not this protocol or not this version.
pub const REFUSED_VERSION: u8 = 2;
/// The guest's answer: too many unclaimed streams, or the id is held already.
pub const REFUSED_BUSY: u8 = 3;

/// The name of a stream, chosen by the host at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub [u8; 16]);

impl StreamId {
    /// Reads the id of a request's field; `None` when its length is wrong.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes a request's field carries.
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The first bytes are not [`MAGIC`].
    #[error("stream handshake: peer sent {0:02x?} instead of the magic bytes")]
    Magic([u8; 4]),
    /// The peer speaks another version.
    #[error("stream handshake: {0}")]
    Version(#[from] VersionError),
    /// The guest answered something other than [`ACCEPTED`].
    #[error("stream handshake: the agent refused stream {id}: {}", refusal(*.code))]
    Refused {
        /// The stream.
        id: StreamId,
        /// The guest's answer.
        code: u8,
    },
    /// The deadline passed.
    #[error("stream handshake: no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed or ended early.
    #[error("stream handshake: {0}")]
    Io(#[from] std::io::Error),
}

fn refusal(code: u8) -> &'static str {
    match code {
        REFUSED_VERSION => "it speaks another protocol version",
        REFUSED_BUSY => "it holds too many unclaimed streams, or this id already",
        _ => "unknown answer",
    }
}

/// What the host sends.
pub fn encode(id: StreamId) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    hello[..4].copy_from_slice(&MAGIC);
    hello[4..6].copy_from_slice(&VERSION.major.to_le_bytes());
    hello[6..8].copy_from_slice(&VERSION.minor.to_le_bytes());
    hello[8..].copy_from_slice(&id.0);
    hello
}

/// Reads what a host sent.
///
/// # Errors
/// [`HandshakeError::Magic`] or [`HandshakeError::Version`].
pub fn decode(hello: &[u8; HELLO_BYTES]) -> Result<StreamId, HandshakeError> {
    let [m0, m1, m2, m3, major0, major1, minor0, minor1, id @ ..] = *hello;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(HandshakeError::Magic([m0, m1, m2, m3]));
    }
    let peer = Version {
        major: u16::from_le_bytes([major0, major1]),
        minor: u16::from_le_bytes([minor0, minor1]),
        patch: VERSION.patch, // not sent: it never matters
    };
    VERSION.check(peer)?;
    Ok(StreamId(id))
}

/// The host's side: names a fresh connection and waits for the guest's answer.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub async fn open<S>(connection: &mut S, id: StreamId, deadline: Duration) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        connection.write_all(&encode(id)).await?;
        connection.flush().await?;
        match connection.read_u8().await? {
            ACCEPTED => Ok(()),
            code => Err(HandshakeError::Refused { id, code }),
        }
    };
    timeout(deadline, exchange).await.unwrap_or(Err(HandshakeError::Timeout(deadline)))
}

/// The guest's side, first half: reads the id. A peer of another version is told so before the error returns.
/// [`answer`] is the second half.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub async fn accept<S>(connection: &mut S, deadline: Duration) -> Result<StreamId, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let mut hello = [0; HELLO_BYTES];
        connection.read_exact(&mut hello).await?;
        let id = decode(&hello);
        if id.is_err() {
            connection.write_u8(REFUSED_VERSION).await?;
            connection.flush().await?;
        }
        id
    };
    timeout(deadline, exchange).await.unwrap_or(Err(HandshakeError::Timeout(deadline)))
}

/// The guest's side, second half: sends [`ACCEPTED`] or a refusal.
///
/// # Errors
/// [`HandshakeError::Io`] or [`HandshakeError::Timeout`].
pub async fn answer<S>(connection: &mut S, code: u8, deadline: Duration) -> Result<(), HandshakeError>
where
    S: AsyncWrite + Unpin,
{
    let exchange = async {
        connection.write_u8(code).await?;
        connection.flush().await?;
        Ok(())
    };
    timeout(deadline, exchange).await.unwrap_or(Err(HandshakeError::Timeout(deadline)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HANDSHAKE;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn both_sides_agree_on_the_id() {
        let id = StreamId(*b"0123456789abcdef");
        block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(64);
            let guest_side = async {
                let seen = accept(&mut guest, HANDSHAKE).await.unwrap();
                answer(&mut guest, ACCEPTED, HANDSHAKE).await.unwrap();
                seen
            };
            let (opened, seen) = tokio::join!(open(&mut host, id, HANDSHAKE), guest_side);
            opened.unwrap();
            assert_eq!(seen, id);
        });
    }

    #[test]
    fn another_version_is_told_so() {
        block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(64);
            let mut hello = encode(StreamId([7; 16]));
            hello[6] ^= 0xff;
            host.write_all(&hello).await.unwrap();
            assert!(matches!(accept(&mut guest, HANDSHAKE).await, Err(HandshakeError::Version(_))));
            assert_eq!(host.read_u8().await.unwrap(), REFUSED_VERSION);
        });
    }

    #[test]
    fn a_refusal_says_why() {
        block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(64);
            guest.write_u8(REFUSED_BUSY).await.unwrap();
            let error = open(&mut host, StreamId([0xab; 16]), HANDSHAKE).await.unwrap_err().to_string();
            assert!(error.contains("abab") && error.contains("unclaimed"), "{error}");
        });
    }

    #[test]
    fn a_silent_peer_costs_one_deadline() {
        block_on(async {
            let (mut host, _guest) = tokio::io::duplex(64);
            let deadline = Duration::from_millis(20);
            let error = open(&mut host, StreamId([0; 16]), deadline).await.unwrap_err();
            assert!(matches!(error, HandshakeError::Timeout(d) if d == deadline));
        });
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(id: [u8; 16]) {
            prop_assert_eq!(decode(&encode(StreamId(id))).unwrap(), StreamId(id));
        }

        #[test]
        fn only_our_magic_and_version_decode(hello: [u8; HELLO_BYTES]) {
            let ours = encode(StreamId([0; 16]));
            prop_assert_eq!(decode(&hello).is_ok(), hello[..8] == ours[..8]);
        }
    }
}
