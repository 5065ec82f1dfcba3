//! Visiting every directory of a merged tree once, parents first.

use std::cell::Cell;
use std::rc::Rc;

use super::{Child, Children, Merged, Node, NodeId, Part};
use crate::error::{Error, Result};
use crate::reader::Inode;

/// Longest path, in bytes; longer ones could not be opened anyway (`PATH_MAX`).
const PATH_BYTES: usize = 4096;

/// How much a walk may find before it is stopped. Layers made by this project stay far below; files made to
/// deceive can name the same inodes or blocks again and again.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names in the merged tree.
    pub entries: u64,
    /// Bytes of file contents, holes not counted.
    pub data_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 8_000_000, data_bytes: 1 << 40 }
    }
}

/// Path of a directory, sharing its head with its siblings'.
#[derive(Clone, Debug)]
pub struct FolderPath(Option<Rc<PathPart>>);

#[derive(Debug)]
struct PathPart {
    parent: FolderPath,
    name: Box<[u8]>,
    length: usize,
}

impl FolderPath {
    fn length(&self) -> usize {
        self.0.as_ref().map_or(0, |part| part.length)
    }

    /// The path of `name` in this directory, relative to the root: no leading slash.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        let mut names = vec![name];
        let mut at = self;
        while let Some(part) = &at.0 {
            names.push(&part.name);
            at = &part.parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// A directory to visit, with what the writer noted when it found it.
#[derive(Debug)]
pub struct Folder<T> {
    parts: Box<[Part]>,
    /// Where it stands.
    pub path: FolderPath,
    /// The writer's note.
    pub note: T,
}

impl<T> Folder<T> {
    /// Identity of the inode that is shown.
    pub fn id(&self) -> Option<NodeId> {
        self.parts.first().map(|part| part.id)
    }
}

/// Visits all directories of `merged`: a directory's children before its siblings, siblings in byte order.
#[derive(Debug)]
pub struct Walk<'a, T> {
    merged: &'a Merged,
    pending: Vec<Folder<T>>,
    /// Length of `pending` before the children of the current directory were added.
    mark: usize,
    entries_left: Rc<Cell<u64>>,
    data_left: u64,
    limits: Limits,
}

impl<'a, T> Walk<'a, T> {
    /// Starts at the root, which gets `note`.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn new(merged: &'a Merged, limits: Limits, note: T) -> Result<Self> {
        let root = Folder { parts: merged.root()?.parts.into(), path: FolderPath(None), note };
        let entries_left = Rc::new(Cell::new(limits.entries));
        Ok(Self { merged, pending: vec![root], mark: 0, entries_left, data_left: limits.data_bytes, limits })
    }

    /// The next directory; `None` when all were visited.
    pub fn next_folder(&mut self) -> Option<Folder<T>> {
        self.pending[self.mark..].reverse();
        let folder = self.pending.pop();
        self.mark = self.pending.len();
        folder
    }

    /// The names in `folder`. May be called again for a second look.
    ///
    /// # Errors
    /// When a layer's directory cannot be read.
    pub fn children(&self, folder: &Folder<T>) -> Result<Counted<'a>> {
        Ok(Counted {
            children: self.merged.children_of(&folder.parts)?,
            left: self.entries_left.clone(),
            limit: self.limits.entries,
        })
    }

    /// The directory's own inode.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn node(&self, folder: &Folder<T>) -> Result<Node> {
        let Some(id) = folder.id() else { return Err(Error::Invalid("a directory of no layer".into())) };
        let inode: Inode = self.merged.meta_of(id)?;
        Ok(Node { layer: id.layer, inode, parts: folder.parts.to_vec() })
    }

    /// Notes that `child` of `folder` is a directory to visit.
    ///
    /// # Errors
    /// When its path is too long.
    pub fn push(&mut self, folder: &Folder<T>, child: Child, note: T) -> Result<()> {
        let length = folder.path.length() + 1 + child.name.len();
        if length > PATH_BYTES {
            return Err(Error::Invalid(format!(
                "the layers hold a path longer than {PATH_BYTES} bytes, ending in {:?}",
                String::from_utf8_lossy(&child.name)
            )));
        }
        let part = PathPart { parent: folder.path.clone(), name: child.name.into(), length };
        self.pending.push(Folder {
            parts: child.node.parts.into(),
            path: FolderPath(Some(Rc::new(part))),
            note,
        });
        Ok(())
    }

    /// Counts `bytes` of file contents against the limit.
    ///
    /// # Errors
    /// When the limit is passed.
    pub fn count_data(&mut self, bytes: u64) -> Result<()> {
        let Some(left) = self.data_left.checked_sub(bytes) else {
            let limit = self.limits.data_bytes;
            return Err(Error::Invalid(format!("the layers hold more than {limit} bytes of file contents")));
        };
        self.data_left = left;
        Ok(())
    }
}

/// Children of a directory, counted against the walk's limit.
#[derive(Debug)]
pub struct Counted<'a> {
    children: Children<'a>,
    left: Rc<Cell<u64>>,
    limit: u64,
}

impl Iterator for Counted<'_> {
    type Item = Result<Child>;

    fn next(&mut self) -> Option<Self::Item> {
        let child = self.children.next()?;
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                let limit = self.limit;
                return Some(Err(Error::Invalid(format!("the layers hold more than {limit} names"))));
            }
        }
        Some(child)
    }
}
