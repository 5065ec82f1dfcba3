//! Where the files of a context come from: a folder, or bytes. What walks and sends them sees no difference.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Stat;
use rustix::fs::FileType;

use super::disk::{self, Identity};
use super::inline::{InlineFile, Node};
use super::{ContextError, MAX_ENTRIES, Patterns};

/// A tree of files that a build may ask for by name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    tree: Tree,
    ignored: Option<Arc<Patterns>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Disk(Arc<OwnedFd>),
    Bytes(Arc<Node>),
}

impl Context {
    /// The folder `path`: held open from now on, and never left through a link.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self, ContextError> {
        let path = path.as_ref();
        let root =
            disk::open_root(path).map_err(|error| ContextError::Open(path.display().to_string(), error))?;
        Ok(Self { tree: Tree::Disk(Arc::new(root)), ignored: None })
    }

    /// Files made of bytes: relative names with `/` between their parts; folders come from the names.
    pub fn inline(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, ContextError> {
        Self::files(files.into_iter().map(InlineFile::from))
    }

    /// The same with permissions.
    pub fn files(files: impl IntoIterator<Item = InlineFile>) -> Result<Self, ContextError> {
        Ok(Self { tree: Tree::Bytes(Arc::new(Node::new(files)?)), ignored: None })
    }

    /// The folder `inner` of `root`. Links in `inner` are followed as if `root` were `/`, so that none leads out of it.
    pub fn within(root: impl AsRef<Path>, inner: &str) -> Result<Self, ContextError> {
        let root = root.as_ref();
        let open = || disk::open_inner(disk::open_root(root)?, if inner.is_empty() { "." } else { inner });
        let folder =
            open().map_err(|error| ContextError::Open(format!("{inner:?} of {}", root.display()), error))?;
        Ok(Self { tree: Tree::Disk(Arc::new(folder)), ignored: None })
    }

    /// The bytes of a regular file, at most `limit`. Links are followed as if the context were `/`.
    ///
    /// # Errors
    /// `FileTooLarge`, `InvalidInput` for what is no regular file, or what the system says.
    pub fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = match &self.tree {
            Tree::Disk(root) => disk::open_followed(root, path)?,
            Tree::Bytes(root) => match root.at(path)? {
                Node::File(bytes, _) if bytes.len() as u64 > limit => {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                Node::File(bytes, _) => return Ok(bytes.to_vec()),
                Node::Folder(_) => return Err(io::ErrorKind::InvalidInput.into()),
            },
        };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    /// The same without what `patterns` mean, whatever a build asks for.
    #[must_use]
    pub fn ignoring(mut self, patterns: Patterns) -> Self {
        self.ignored = Some(Arc::new(patterns));
        self
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn ignored(&self) -> Option<&Patterns> {
        self.ignored.as_deref()
    }
}

/// A folder of a tree, open.
pub(crate) enum Folder {
    Disk(OwnedFd),
    Bytes(Arc<Node>, String),
}

/// A name in a folder, which need not be UTF-8.
pub(crate) struct Name {
    pub(crate) raw: CString,
    pub(crate) kind: FileType,
}

/// The bytes of a file.
pub(crate) enum Content {
    File(File),
    Bytes(Arc<[u8]>),
}

impl Tree {
    /// Opens the folder at `path`, which is clean; the empty path is the context itself.
    pub(crate) fn open_folder(&self, path: &str) -> io::Result<Folder> {
        match self {
            Self::Disk(root) => {
                Ok(Folder::Disk(disk::open_folder(root, if path.is_empty() { "." } else { path })?))
            }
            Self::Bytes(root) => match root.at(path)? {
                Node::Folder(_) => Ok(Folder::Bytes(root.clone(), path.to_owned())),
                Node::File(..) => Err(io::ErrorKind::NotADirectory.into()),
            },
        }
    }

    /// Opens the file at `path` for reading.
    pub(crate) fn open_file(&self, path: &str) -> io::Result<Content> {
        match self {
            Self::Disk(root) => Ok(Content::File(disk::open_file(root, path)?)),
            Self::Bytes(root) => match root.at(path)? {
                Node::File(bytes, _) => Ok(Content::Bytes(bytes.clone())),
                Node::Folder(_) => Err(io::ErrorKind::IsADirectory.into()),
            },
        }
    }

    /// The target of the link at `path`; nothing when it is no link, or not there.
    pub(crate) fn link_target(&self, path: &str) -> io::Result<Option<CString>> {
        match self {
            Self::Disk(root) => disk::link_target(root, path),
            Self::Bytes(_) => Ok(None),
        }
    }
}

impl Folder {
    /// What is in it, sorted by the bytes of the names; `None` when there is more than a context may have.
    pub(crate) fn names(&self) -> io::Result<Option<Vec<Name>>> {
        match self {
            Self::Disk(folder) => {
                let Some(found) = disk::names(folder, MAX_ENTRIES as usize)? else { return Ok(None) };
                let mut names: Vec<_> = found.into_iter().map(|(raw, kind)| Name { raw, kind }).collect();
                names.sort_unstable_by(|one, other| one.raw.as_bytes().cmp(other.raw.as_bytes()));
                Ok(Some(names))
            }
            Self::Bytes(root, path) => {
                let Node::Folder(entries) = root.at(path)? else { return Ok(Some(Vec::new())) };
                let names = entries.iter().map(|(name, node)| {
                    let kind = match node {
                        Node::Folder(_) => FileType::Directory,
                        Node::File(..) => FileType::RegularFile,
                    };
                    Ok(Name { raw: CString::new(name.as_str())?, kind })
                });
                names.collect::<io::Result<_>>().map(Some)
            }
        }
    }

    /// Opens a folder in it.
    pub(crate) fn open(&self, name: &Name) -> io::Result<Self> {
        match self {
            Self::Disk(folder) => Ok(Self::Disk(disk::open_folder(folder, name.raw.as_c_str())?)),
            Self::Bytes(root, path) => {
                Ok(Self::Bytes(root.clone(), format!("{path}/{}", name.raw.to_string_lossy())))
            }
        }
    }

    /// What BuildKit is told about a file in it, or with no name about the folder itself; see [`disk::stat`].
    pub(crate) fn stat(&self, name: Option<&Name>) -> io::Result<(Option<Stat>, Option<Identity>)> {
        match self {
            Self::Disk(folder) => disk::stat(folder, name.map_or(c".", |name| name.raw.as_c_str())),
            Self::Bytes(root, path) => {
                let path = name.map_or(path.clone(), |name| format!("{path}/{}", name.raw.to_string_lossy()));
                Ok((Some(root.at(&path)?.stat()), None))
            }
        }
    }
}
