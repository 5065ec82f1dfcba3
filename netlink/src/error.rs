//! Why a request failed.

use std::io;

/// Result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused it; its error number.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// The socket could not be opened or used; the error number.
    #[error("the netlink socket failed: {}", io::Error::from_raw_os_error(*.0))]
    Socket(i32),
    /// No answer within the deadline.
    #[error("the kernel did not answer within {0} seconds")]
    TimedOut(u64),
    /// An answer that is no netlink message.
    #[error("the kernel's answer is malformed")]
    Malformed,
    /// The table changed under each of the attempts to read it.
    #[error("the table changes faster than it can be read")]
    Changing,
    /// A request with an attribute, or an answer, beyond the limits.
    #[error("a netlink message is too large")]
    TooLarge,
}

impl Error {
    /// Whether the kernel refused the request with this error number.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        *self == Self::Refused(errno)
    }

    pub(crate) fn socket(errno: rustix::io::Errno) -> Self {
        Self::Socket(errno.raw_os_error())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(errno) | Error::Socket(errno) => Self::from_raw_os_error(errno),
            Error::TimedOut(_) => Self::new(io::ErrorKind::TimedOut, error),
            Error::Malformed | Error::TooLarge => Self::new(io::ErrorKind::InvalidData, error),
            Error::Changing => Self::new(io::ErrorKind::WouldBlock, error),
        }
    }
}
