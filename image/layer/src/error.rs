//! Why a layer was not converted. Every message is one line and names the entry, the bound or the value at fault;
//! where the stream itself fails, the last entry read as well.

use std::fmt;
use std::io;

use crate::digest::Digest;

/// What went wrong with one layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading the blob or writing the result failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, as in "reading the layer blob".
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The blob's bytes are not the ones the descriptor promises.
    #[error("layer blob has digest {found}, its descriptor says {expected}")]
    BlobDigest {
        /// From the descriptor.
        expected: Digest,
        /// Of the bytes read.
        found: Digest,
    },
    /// The blob's length is not the one the descriptor promises.
    #[error("layer blob is {found} bytes long, its descriptor says {expected}")]
    BlobSize {
        /// From the descriptor, bytes.
        expected: u64,
        /// Bytes read; reading stops soon after the expected size.
        found: u64,
    },
    /// The tar inside is not the one the image configuration promises.
    #[error("layer tar has diff ID {found}, the image configuration says {expected}")]
    DiffId {
        /// From the image configuration.
        expected: Digest,
        /// Of the decompressed bytes.
        found: Digest,
    },
    /// The compressed stream is damaged or of a kind that is not read here.
    #[error("layer blob is not valid {format}: {problem}")]
    Compression {
        /// Name of the compression.
        format: &'static str,
        /// What the decompressor said.
        problem: String,
    },
    /// The tar stream is damaged where no entry can be named.
    #[error("layer tar is damaged at byte {offset}: {reason}")]
    Tar {
        /// Position in the decompressed stream.
        offset: u64,
        /// What is wrong there.
        reason: Reason,
    },
    /// One entry cannot be taken over.
    #[error("layer entry {name}: {reason}")]
    Entry {
        /// The entry's path as the tar has it.
        name: EntryName,
        /// What is wrong with it.
        reason: Reason,
    },
    /// A bound of [`crate::Limits`] is exceeded.
    #[error("layer has more than {limit} {what} (limit {field})")]
    Limit {
        /// The field of `Limits`.
        field: &'static str,
        /// What is counted, with its unit.
        what: &'static str,
        /// The configured bound.
        limit: u64,
    },
    /// The stream failed, or grew beyond a bound, while this entry was read or after it.
    #[error("{error}; the last entry read is {entry}")]
    After {
        /// What went wrong.
        error: Box<Self>,
        /// The entry's path as the tar has it.
        entry: EntryName,
    },
    /// The result would not fit the on-disk format.
    #[error("the EROFS file would need {what}, more than the format can address")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
    },
}

impl Error {
    /// For `map_err`: wraps an I/O error with what was being done.
    pub fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// Adds the last entry read (empty: none yet) to an error of the stream, which alone says only where it stopped.
    #[must_use]
    pub fn after(self, entry: &[u8]) -> Self {
        match self {
            Self::Compression { .. } | Self::Tar { .. } | Self::Limit { .. } if !entry.is_empty() => {
                Self::After { error: Box::new(self), entry: EntryName::new(entry) }
            }
            other => other,
        }
    }

    /// The error itself, without [`Error::After`] around it.
    pub fn inner(&self) -> &Self {
        match self {
            Self::After { error, .. } => error,
            other => other,
        }
    }

    /// An error about the entry called `name`.
    pub fn entry(name: &[u8], reason: Reason) -> Self {
        Self::Entry { name: EntryName::new(name), reason }
    }
}

/// What is wrong with an entry or a spot in the tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each message is its documentation
pub enum Reason {
    #[error("header checksum does not match")]
    Checksum,
    #[error("the tar ends inside {0}")]
    Truncated(&'static str),
    #[error("the tar is empty")]
    Empty,
    #[error("data follows the end-of-archive marker")]
    TrailingData,
    #[error("a single zero block stands between entries")]
    LoneZeroBlock,
    #[error("{0} is not a valid number")]
    Number(&'static str),
    #[error("{0} is out of range")]
    Range(&'static str),
    #[error("malformed PAX header: {0}")]
    Pax(&'static str),
    #[error("malformed sparse map: {0}")]
    Sparse(&'static str),
    #[error("a long-name or PAX header is not followed by an entry")]
    DanglingExtension,
    #[error("entry type {0:?} is not supported")]
    Type(char),
    #[error("the name is empty")]
    EmptyName,
    #[error("the name contains a NUL byte")]
    NulInName,
    #[error("the path contains \"..\"")]
    DotDot,
    #[error("a path component is longer than 255 bytes")]
    NameTooLong,
    #[error("the path leads through something that is not a directory")]
    NotDirectory,
    #[error("the path leads through too many symlinks")]
    SymlinkLoop,
    #[error("the root can only be a directory")]
    RootType,
    #[error("symlink target is empty")]
    EmptyTarget,
    #[error("hardlink target {0} is not in this layer")]
    LinkMissing(EntryName),
    #[error("hardlink target {0} is a directory")]
    LinkToDirectory(EntryName),
    #[error("hardlink target {0} is a whiteout")]
    LinkToWhiteout(EntryName),
    #[error("hardlink target {0} is not a path inside the layer")]
    LinkPath(EntryName),
    #[error("not a valid whiteout name")]
    WhiteoutName,
    #[error("the path leads through a whiteout name")]
    ThroughWhiteout,
    #[error("character device 0:0 is reserved for whiteouts")]
    WhiteoutDevice,
    #[error("extended attribute {0} has no valid name")]
    XattrName(EntryName),
    #[error("extended attribute {0} is longer than 65535 bytes")]
    XattrValue(EntryName),
    #[error("the {field} limit of {limit} is exceeded")]
    Limit { field: &'static str, limit: u64 },
}

/// A path from a tar, printable in one line: control bytes and invalid UTF-8 escaped, cut after 200 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<str>);

impl EntryName {
    /// Makes `bytes` printable.
    pub fn new(bytes: &[u8]) -> Self {
        let head = &bytes[..bytes.len().min(200)];
        let mut text = String::with_capacity(head.len() + 8);
        text.push('"');
        for chunk in head.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => text.extend(['\\', c]),
                    c if c.is_control() => text.extend(c.escape_default()),
                    c => text.push(c),
                }
            }
            text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
        text.push('"');
        if head.len() < bytes.len() {
            text.push('…');
        }
        Self(text.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_one_short_line() {
        assert_eq!(EntryName::new(b"a/b\n\xff\"\x1b").to_string(), r#""a/b\n\xff\"\u{1b}""#);
        let long = EntryName::new(&[b'x'; 5000]).to_string();
        assert_eq!(long.chars().count(), 203);
        assert!(long.ends_with('…'));
    }
}
