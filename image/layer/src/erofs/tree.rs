//! The files of one file system in memory: names, inodes and where their data stands; no data.
//!
//! Compact, because a hostile layer may have millions of entries: an entry costs [`ENTRY_COST`] bytes plus its name,
//! and everything is charged against one budget.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use super::format::{self, NAME_MAX, S_IFDIR, S_IFMT};
use super::sparse::Sparse;
use crate::error::{EntryName, Reason};

/// Names an inode of a [`Tree`]; not its number on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(super) u32);

/// Names a set of attributes of a [`Tree`]; the default is the empty set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XattrId(pub(super) u32);

/// What `stat` shows of an inode besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// File type (`S_IF*`) and permission bits; the type must match the [`Content`].
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970, negative before.
    pub mtime: i64,
    /// Nanoseconds of `mtime`, below 10⁹.
    pub mtime_nsec: u32,
    /// From [`Tree::xattrs`].
    pub xattrs: XattrId,
}

impl Meta {
    /// A directory nobody described: mode 0755, owned by root, dated 1970.
    pub const IMPLICIT_DIRECTORY: Self =
        Self { mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs: XattrId(0) };
}

/// The data of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory; its names are in the tree.
    Directory,
    /// A regular file whose bytes stand in the output file already, in whole blocks.
    Blocks {
        /// First block, counted from the start of the output file.
        start: u32,
        /// Bytes.
        size: u64,
    },
    /// A regular file with holes.
    Sparse(Box<Sparse>),
    /// A symbolic link with its target.
    Symlink(Box<[u8]>),
    /// A block or character device, encoded as by [`format::encode_device`].
    Device(u32),
    /// A FIFO or socket.
    None,
}

pub(super) struct Node {
    pub meta: Meta,
    pub content: Content,
    /// Hides what lower layers have below this directory.
    pub opaque: bool,
}

pub(super) struct Dentry {
    pub parent: u32,
    name_at: u32,
    pub inode: u32,
    name_len: u8,
}

/// Bytes charged for an entry, without its name: node, name record, hash slots, and what writing needs per entry.
const ENTRY_COST: usize = size_of::<Node>() + size_of::<Dentry>() + 11 + 20;
/// Bytes charged on top of every separate allocation.
const ALLOCATION_COST: usize = 32;

/// A file system being put together. Starts as a root directory with [`Meta::IMPLICIT_DIRECTORY`].
pub struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) dentries: Vec<Dentry>,
    names: Vec<u8>,
    table: Vec<u32>,
    hasher: RandomState,
    pub(super) xattrs: Vec<Rc<[u8]>>,
    xattr_ids: HashMap<Rc<[u8]>, u32>,
    budget: u64,
    left: u64,
}

const FREE: u32 = u32::MAX;

impl Tree {
    /// The root inode.
    pub const ROOT: InodeId = InodeId(0);

    /// An empty tree that may hold `budget` bytes (at most 3 GiB) in memory.
    pub fn new(budget: u64) -> Self {
        let budget = budget.min(3 << 30);
        let root = Node { meta: Meta::IMPLICIT_DIRECTORY, content: Content::Directory, opaque: false };
        let empty: Rc<[u8]> = Rc::from([]);
        Self {
            nodes: vec![root],
            dentries: Vec::new(),
            names: Vec::new(),
            table: vec![FREE; 1024],
            hasher: RandomState::new(),
            xattrs: vec![empty.clone()],
            xattr_ids: HashMap::from([(empty, 0)]),
            budget,
            left: budget,
        }
    }

    /// The inode called `name` in directory `parent`.
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match self.table[self.slot(parent.0, name)] {
            FREE => None,
            dentry => Some(InodeId(self.dentries[dentry as usize].inode)),
        }
    }

    /// What the inode is.
    pub fn content(&self, inode: InodeId) -> &Content {
        &self.nodes[inode.0 as usize].content
    }

    /// Mode, owner, time and attributes of the inode.
    pub fn meta(&self, inode: InodeId) -> &Meta {
        &self.nodes[inode.0 as usize].meta
    }

    /// Replaces mode, owner, time and attributes; the file type stays.
    pub fn set_meta(&mut self, inode: InodeId, meta: Meta) {
        let node = &mut self.nodes[inode.0 as usize];
        let kind = node.meta.mode & S_IFMT;
        node.meta = Meta { mode: kind | meta.mode & !S_IFMT, ..meta };
    }

    /// Makes the directory hide what lower layers have in its place (`trusted.overlay.opaque=y`).
    pub fn set_opaque(&mut self, directory: InodeId) {
        self.nodes[directory.0 as usize].opaque = true;
    }

    /// Adds an inode called `name` to the directory `parent`. What had that name before, with everything below it, is
    /// no longer part of the file system.
    ///
    /// # Errors
    /// The name is empty, `.`, `..`, too long, or holds `/` or NUL; `parent` is no directory; the budget is used up.
    pub fn insert(
        &mut self,
        parent: InodeId,
        name: &[u8],
        meta: Meta,
        content: Content,
    ) -> Result<InodeId, Reason> {
        self.charge(match &content {
            Content::Symlink(target) => target.len() + ALLOCATION_COST,
            Content::Sparse(sparse) => sparse.cost() + ALLOCATION_COST,
            _ => 0,
        })?;
        let inode = u32::try_from(self.nodes.len()).map_err(|_| self.over_budget())?;
        self.set_name(parent, name, inode)?;
        self.nodes.push(Node { meta, content, opaque: false });
        Ok(InodeId(inode))
    }

    /// Gives `inode`, which must not be a directory, a further name. Replaces like [`Tree::insert`].
    ///
    /// # Errors
    /// As [`Tree::insert`].
    pub fn link(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), Reason> {
        if matches!(self.content(inode), Content::Directory) {
            return Err(Reason::LinkToDirectory(EntryName::new(name)));
        }
        self.set_name(parent, name, inode.0)
    }

    fn set_name(&mut self, parent: InodeId, name: &[u8], inode: u32) -> Result<(), Reason> {
        check_name(name)?;
        if !matches!(self.content(parent), Content::Directory) {
            return Err(Reason::NotDirectory);
        }
        let slot = self.slot(parent.0, name);
        self.charge(ENTRY_COST)?;
        if self.table[slot] != FREE {
            self.dentries[self.table[slot] as usize].inode = inode;
            return Ok(());
        }
        self.charge(name.len())?;
        self.table[slot] = self.dentries.len() as u32;
        let name_at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.dentries.push(Dentry { parent: parent.0, name_at, inode, name_len: name.len() as u8 });
        if self.dentries.len() * 4 > self.table.len() * 3 {
            self.grow();
        }
        Ok(())
    }

    /// Interns a set of attributes, names with their prefix. Of equal names the last counts.
    ///
    /// # Errors
    /// A name EROFS has no prefix for, a name or value too long, more than `limit` bytes in all, or the budget used up.
    pub fn xattrs<'a>(
        &mut self,
        attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        limit: usize,
    ) -> Result<XattrId, Reason> {
        let mut split = std::collections::BTreeMap::new();
        for (name, value) in attributes {
            let bad = || Reason::XattrName(EntryName::new(name));
            if name.len() > NAME_MAX || name.contains(&0) {
                return Err(bad());
            }
            if value.len() > usize::from(u16::MAX) {
                return Err(Reason::XattrValue(EntryName::new(name)));
            }
            split.insert(format::split_xattr_name(name).ok_or_else(bad)?, value);
        }
        if split.is_empty() {
            return Ok(XattrId::default());
        }
        let entries: usize = split.iter().map(|((_, n), v)| format::xattr_entry_size(n.len(), v.len())).sum();
        if entries > limit.min(200 << 10) {
            return Err(Reason::Limit { field: "xattr_bytes", limit: limit.min(200 << 10) as u64 });
        }
        // Charged again for every use, though stored once: on disk every inode has its own copy.
        self.charge(entries + ALLOCATION_COST)?;
        let mut area = Vec::with_capacity(entries);
        for ((index, name), value) in split {
            area.extend([name.len() as u8, index]);
            area.extend((value.len() as u16).to_le_bytes());
            area.extend(name);
            area.extend(value);
            area.resize(area.len().next_multiple_of(4), 0);
        }
        if let Some(id) = self.xattr_ids.get(&area[..]) {
            return Ok(XattrId(*id));
        }
        let area: Rc<[u8]> = area.into();
        let id = self.xattrs.len() as u32;
        self.xattrs.push(area.clone());
        self.xattr_ids.insert(area, id);
        Ok(XattrId(id))
    }

    pub(super) fn name(&self, dentry: &Dentry) -> &[u8] {
        &self.names[dentry.name_at as usize..][..dentry.name_len.into()]
    }

    /// Attribute entries of a node as they stand on disk behind the 12-byte header; none: empty.
    pub(super) fn xattr_area(&self, node: &Node) -> (&[u8], &'static [u8]) {
        // e_name_len, e_name_index (trusted.), e_value_size, name, value, padding to 4
        const OPAQUE: &[u8; 20] = b"\x0e\x04\x01\0overlay.opaquey\0";
        let opaque: &[u8] = if node.opaque { OPAQUE } else { &[] };
        (&self.xattrs[node.meta.xattrs.0 as usize], opaque)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Reason> {
        self.left = self.left.checked_sub(bytes as u64).ok_or_else(|| self.over_budget())?;
        Ok(())
    }

    fn over_budget(&self) -> Reason {
        Reason::Limit { field: "metadata_bytes", limit: self.budget }
    }

    /// The slot that holds the name, or the free one where it belongs. The table is never full.
    fn slot(&self, parent: u32, name: &[u8]) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = self.hasher.hash_one((parent, name)) as usize & mask;
        loop {
            match self.table[slot] {
                FREE => return slot,
                id => {
                    let dentry = &self.dentries[id as usize];
                    if dentry.parent == parent && self.name(dentry) == name {
                        return slot;
                    }
                }
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        self.table = vec![FREE; self.table.len() * 2];
        for (id, dentry) in self.dentries.iter().enumerate() {
            let slot = self.slot(dentry.parent, self.name(dentry));
            self.table[slot] = id as u32;
        }
    }

    /// Frees what only building needs.
    pub(super) fn seal(&mut self) {
        self.table = Vec::new();
        self.xattr_ids = HashMap::new();
    }
}

fn check_name(name: &[u8]) -> Result<(), Reason> {
    match name {
        b"" => Err(Reason::EmptyName),
        b"." | b".." => Err(Reason::DotDot),
        name if name.len() > NAME_MAX => Err(Reason::NameTooLong),
        name if name.contains(&0) => Err(Reason::NulInName),
        name if name.contains(&b'/') => Err(Reason::NotDirectory),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Meta = Meta { mode: format::S_IFREG | 0o644, ..Meta::IMPLICIT_DIRECTORY };
    const EMPTY: Content = Content::Blocks { start: 0, size: 0 };

    #[test]
    fn names_are_found_after_the_table_grew() {
        let mut tree = Tree::new(1 << 24);
        let ids: Vec<_> = (0..5000)
            .map(|i| tree.insert(Tree::ROOT, format!("f{i}").as_bytes(), FILE, EMPTY).unwrap())
            .collect();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(tree.lookup(Tree::ROOT, format!("f{i}").as_bytes()), Some(*id));
        }
        assert_eq!(tree.lookup(Tree::ROOT, b"f5000"), None);
    }

    #[test]
    fn a_replaced_name_leads_to_the_new_inode() {
        let mut tree = Tree::new(1 << 20);
        let old = tree.insert(Tree::ROOT, b"a", FILE, EMPTY).unwrap();
        tree.link(Tree::ROOT, b"b", old).unwrap();
        let new = tree.insert(Tree::ROOT, b"a", FILE, EMPTY).unwrap();
        assert_eq!(tree.lookup(Tree::ROOT, b"a"), Some(new));
        assert_eq!(tree.lookup(Tree::ROOT, b"b"), Some(old));
    }

    #[test]
    fn the_budget_ends_growth() {
        let mut tree = Tree::new(10_000);
        let error = (0..).find_map(|i: u32| {
            tree.insert(Tree::ROOT, &i.to_le_bytes().map(|b| b | 1 << 7), FILE, EMPTY).err()
        });
        assert_eq!(error, Some(Reason::Limit { field: "metadata_bytes", limit: 10_000 }));
    }

    #[test]
    fn bad_names_are_refused() {
        let mut tree = Tree::new(1 << 20);
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(tree.insert(Tree::ROOT, name, FILE, EMPTY).is_err());
        }
        let file = tree.insert(Tree::ROOT, &[b'x'; 255], FILE, EMPTY).unwrap();
        assert_eq!(tree.insert(file, b"y", FILE, EMPTY), Err(Reason::NotDirectory));
        assert!(tree.link(Tree::ROOT, b"z", Tree::ROOT).is_err());
    }

    #[test]
    fn equal_attributes_are_stored_once_whatever_their_order() {
        let mut tree = Tree::new(1 << 20);
        let (a, b) = ((&b"user.a"[..], &b"1"[..]), (&b"user.b"[..], &b"2\0\n"[..]));
        let first = tree.xattrs([a, b], 1000).unwrap();
        assert_eq!(tree.xattrs([b, a], 1000), Ok(first));
        assert_eq!(tree.xattrs([], 1000), Ok(XattrId(0)));
        assert!(tree.xattrs([(&b"com.apple.x"[..], &b""[..])], 1000).is_err());
        assert!(tree.xattrs([(&b"user.a"[..], &[0; 1000][..])], 1000).is_err());
    }
}
