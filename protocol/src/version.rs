//! Which versions of the protocol speak to each other.
//!
//! Same MAJOR.MINOR: yes. Different PATCH: yes, with a warning. Anything else is refused by both sides, below 1.0 too.

use std::fmt;
use std::str::FromStr;

/// A protocol version, `MAJOR.MINOR.PATCH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Changes with an incompatible protocol.
    pub major: u16,
    /// Changes with what is added to the protocol.
    pub minor: u16,
    /// Changes without a difference in the protocol.
    pub patch: u16,
}

/// The version this crate implements: the crate's own.
pub const VERSION: Version = Version {
    major: number(env!("CARGO_PKG_VERSION_MAJOR")),
    minor: number(env!("CARGO_PKG_VERSION_MINOR")),
    patch: number(env!("CARGO_PKG_VERSION_PATCH")),
};

/// Why a peer's version is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VersionError {
    /// Not three numbers with dots between.
    #[error("peer sent {0:?} as its protocol version; expected MAJOR.MINOR.PATCH")]
    Malformed(String),
    /// Another MAJOR.MINOR.
    #[error(
        "peer speaks protocol {peer}, this side {ours}: MAJOR.MINOR must be equal; use a kernel and agent of the same release"
    )]
    Incompatible {
        /// What the peer speaks.
        peer: Version,
        /// What this side speaks.
        ours: Version,
    },
}

/// How a compatible peer compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The same version.
    Exact,
    /// The same MAJOR.MINOR and another PATCH: worth a warning.
    OtherPatch,
}

impl Version {
    /// Compares a peer's version with this side's.
    pub fn check(self, peer: Self) -> Result<Match, VersionError> {
        if (peer.major, peer.minor) != (self.major, self.minor) {
            return Err(VersionError::Incompatible { peer, ours: self });
        }
        Ok(if peer.patch == self.patch { Match::Exact } else { Match::OtherPatch })
    }
}

/// Compares the text a peer sent with [`VERSION`].
pub fn check(peer: &str) -> Result<Match, VersionError> {
    VERSION.check(peer.parse()?)
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let malformed = || VersionError::Malformed(text.chars().take(32).collect());
        let mut numbers = text.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten().ok_or_else(malformed)
        });
        let mut next = || numbers.next().ok_or_else(malformed)?;
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        match numbers.next() {
            None => Ok(version),
            Some(_) => Err(malformed()),
        }
    }
}

/// Decimal digits to a number, at compile time.
const fn number(digits: &str) -> u16 {
    let bytes = digits.as_bytes();
    let mut value = 0;
    let mut i = 0;
    while i < bytes.len() {
        value = value * 10 + (bytes[i] - b'0') as u16;
        i += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// Every MAJOR.MINOR there was, the newest last, and what its `agent.proto` said: a line of this list is added, never changed.
    const SAID: [(&str, &str); 2] = [("0.1", "17e6fc7a95b92d69"), ("0.2", "cc70fdeed2d964d9")];

    /// The definitions without comments and layout, hashed.
    fn said(proto: &str) -> String {
        let code = proto.lines().map(|line| line.split("//").next().unwrap_or_default());
        let words: Vec<_> = code.flat_map(str::split_whitespace).collect();
        Sha256::digest(words.join(" ")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn what_the_protocol_says_changes_with_its_version_only() {
        let (version, hash) = SAID[SAID.len() - 1];
        assert_eq!(format!("{}.{}", VERSION.major, VERSION.minor), version);
        let now = said(include_str!("../proto/agent.proto"));
        assert_eq!(
            now, hash,
            "agent.proto has changed: raise MINOR in protocol/Cargo.toml and add it to SAID"
        );
        for (at, one) in SAID.iter().enumerate() {
            assert!(SAID[..at].iter().all(|other| other.0 != one.0 && other.1 != one.1), "{one:?} twice");
        }
    }

    #[test]
    fn ours_is_the_crate_version() {
        assert_eq!(VERSION.to_string(), env!("CARGO_PKG_VERSION"));
        assert_eq!(check(env!("CARGO_PKG_VERSION")), Ok(Match::Exact));
    }

    #[test]
    fn another_minor_or_major_is_refused_and_another_patch_is_not() {
        let ours = Version { major: 0, minor: 4, patch: 2 };
        assert_eq!(ours.check("0.4.9".parse().unwrap()), Ok(Match::OtherPatch));
        assert!(matches!(ours.check("0.5.2".parse().unwrap()), Err(VersionError::Incompatible { .. })));
        let error = ours.check("1.4.2".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("1.4.2") && error.contains("0.4.2"), "{error}");
    }

    #[test]
    fn malformed_versions_are_refused() {
        for bad in ["", "1", "1.2", "1.2.3.4", "1.2.x", "1.2.+3", "1.2.65536", " 1.2.3", "1..3"] {
            assert!(matches!(bad.parse::<Version>(), Err(VersionError::Malformed(_))), "{bad:?}");
        }
    }
}
