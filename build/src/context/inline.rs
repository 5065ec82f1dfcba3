//! A context made of bytes: inline Dockerfiles, ConfigMaps.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Stat;
use sha2::{Digest, Sha256};

use super::{ContextError, clean, mode};

/// Longest name of a file with its folders, in bytes.
const MAX_PATH: usize = 4095;
/// Longest part of a name, in bytes.
const MAX_PART: usize = 255;

/// A file made of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// Relative name with `/` between its parts.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Permission bits; others are left out.
    pub mode: u32,
}

impl From<(String, Vec<u8>)> for InlineFile {
    fn from((path, bytes): (String, Vec<u8>)) -> Self {
        Self { path, bytes, mode: 0o644 }
    }
}

/// A folder or a file in memory.
#[derive(Debug)]
pub(crate) enum Node {
    /// Entries by name, in the order in which they are sent.
    Folder(BTreeMap<String, Node>),
    /// A file's bytes and permissions.
    File(Arc<[u8]>, u32),
}

impl Node {
    /// A folder with these files; folders between them come from the names.
    pub(crate) fn new(files: impl IntoIterator<Item = InlineFile>) -> Result<Self, ContextError> {
        let mut root = BTreeMap::new();
        for InlineFile { path, bytes, mode } in files {
            let refuse = |why| ContextError::Name(path.clone(), why);
            check(&path).map_err(refuse)?;
            let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let mut folder = &mut root;
            for part in folders.split('/').filter(|part| !part.is_empty()) {
                let inner = folder.entry(part.to_owned()).or_insert_with(|| Self::Folder(BTreeMap::new()));
                let Self::Folder(inner) = inner else { return Err(refuse("a part of it is a file")) };
                folder = inner;
            }
            if folder.insert(name.to_owned(), Self::File(bytes.into(), mode & 0o777)).is_some() {
                return Err(refuse("it is there twice"));
            }
        }
        Ok(Self::Folder(root))
    }

    /// What stands at `path`, which is clean; the empty path and `.` are the folder itself.
    pub(crate) fn at(&self, path: &str) -> io::Result<&Self> {
        let mut node = self;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let Self::Folder(entries) = node else { return Err(io::ErrorKind::NotADirectory.into()) };
            node = entries.get(part).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    /// What BuildKit is told about it, with the path left empty.
    ///
    /// A builder compares sizes and times with what it has from the last build, so the time of a file is made of its
    /// bytes: the first second of 1970 and a part of their hash. Equal bytes are not sent again, others are.
    pub(crate) fn stat(&self) -> Stat {
        match self {
            Self::Folder(_) => Stat { mode: mode::FOLDER | 0o755, ..Stat::default() },
            Self::File(bytes, mode) => {
                let hash = Sha256::digest(bytes);
                let part = hash.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
                Stat {
                    mode: *mode,
                    size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
                    mod_time: (part % 1_000_000_000).cast_signed(),
                    ..Stat::default()
                }
            }
        }
    }
}

fn check(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path == "." || clean(path) != path || path.starts_with('/') {
        return Err("it must be relative, without . and // in it");
    }
    if path == ".." || path.starts_with("../") {
        return Err("it leads out of the context");
    }
    if path.contains('\0') || path.len() > MAX_PATH || path.split('/').any(|part| part.len() > MAX_PART) {
        return Err("it is longer than a path can be, or has a zero byte");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_or_collide_are_refused() {
        for names in [
            &["/etc/passwd"][..],
            &["../a"],
            &[".."],
            &["."],
            &[""],
            &["a//b"],
            &["a/../b"],
            &["a/"],
            &["a\0b"],
            &["a", "a/b"],
            &["a/b", "a"],
            &["a", "a"],
        ] {
            let files = names.iter().map(|name| ((*name).to_owned(), Vec::new()).into());
            assert!(matches!(Node::new(files), Err(ContextError::Name(..))), "{names:?}");
        }
        let long = "x".repeat(256);
        assert!(Node::new([(long, Vec::new()).into()]).is_err());
    }

    #[test]
    fn other_bytes_of_the_same_size_have_another_time() {
        let time = |bytes: &[u8]| Node::File(bytes.into(), 0o644).stat().mod_time;
        assert_ne!(time(b"FROM a"), time(b"FROM b"));
        assert_eq!(time(b"FROM a"), time(b"FROM a"));
    }
}
