//! From tar entries to the tree, as containerd's `archive.Apply` does it, without touching any file system.
//!
//! * A leading `/` is dropped; `.` and empty components are skipped; `..` is refused, in names and hardlink targets.
//! * Missing parents become directories (0755, root, dated 1970). A parent that is a symlink of this layer is followed
//!   within the layer, its `..` stopping at the root.
//! * A later entry replaces an earlier one of the same name, except that a directory keeps its names when another
//!   directory entry describes it.
//! * Whiteouts hide lower layers only, wherever they stand in the tar: `.wh.NAME` becomes the character device 0:0 that
//!   overlayfs reads, unless this layer has NAME; if it has it as a directory, that becomes opaque. `.wh..wh..opq` makes
//!   its folder opaque. Everything else that begins with `.wh..wh.` is left out.
//! * Attributes `trusted.overlay.*` and `user.overlay.*`, those of other systems, and `user.*` on anything but files and
//!   directories (Linux has none there) are left out and counted. Owners and times in hardlink entries are ignored.

use std::borrow::Cow;

use crate::erofs::{Content, InodeId, Meta, Segment, Sparse, Tree, XattrId, format};
use crate::error::{EntryName, Error, Reason};
use crate::limits::Limits;
use crate::tar::{Entry, EntryKind};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs takes for a whiteout: character device 0:0.
const WHITEOUT_DEVICE: Content = Content::Device(0);
/// Symlinks followed on the way to one entry, as in Linux.
const MAX_SYMLINKS: usize = 40;
/// Longest symlink target Linux can read, bytes.
const MAX_TARGET: usize = 4095;

/// A path's part before its last component, and that component.
type Split<'p> = (&'p [u8], &'p [u8]);

/// Applies entries to a tree.
pub struct Applier<'l> {
    tree: Tree,
    limits: &'l Limits,
    /// Where the tar begins in the output file.
    tar_start: u64,
    entries: u64,
    dropped_xattrs: u64,
}

/// What came out of all entries.
pub struct Applied {
    /// The layer's files.
    pub tree: Tree,
    /// Entries seen.
    pub entries: u64,
    /// Attributes left out.
    pub dropped_xattrs: u64,
}

impl<'l> Applier<'l> {
    /// Starts with an empty layer. File data will be found `tar_start` bytes behind where the tar has it.
    pub fn new(limits: &'l Limits, tar_start: u64) -> Self {
        let tree = Tree::new(limits.metadata_bytes);
        Self { tree, limits, tar_start, entries: 0, dropped_xattrs: 0 }
    }

    /// The finished tree.
    pub fn finish(self) -> Applied {
        Applied { tree: self.tree, entries: self.entries, dropped_xattrs: self.dropped_xattrs }
    }

    /// Applies the next entry.
    ///
    /// # Errors
    /// The entry is refused; the error names it.
    pub fn apply(&mut self, entry: Entry) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = Error::Limit { field: "entries", what: "entries", limit: self.limits.entries };
            return Err(limit.after(&entry.path));
        }
        let path = entry.path.clone();
        self.apply_entry(entry).map_err(|reason| Error::entry(&path, reason))
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(), Reason> {
        let Entry { path, kind, .. } = &entry;
        let Some((directory, name)) = self.split(path)? else {
            if !matches!(kind, EntryKind::Directory) {
                return Err(Reason::RootType);
            }
            let meta = self.meta(&entry, format::S_IFDIR)?;
            self.tree.set_meta(Tree::ROOT, meta);
            return Ok(());
        };
        if components(directory).chain([name]).any(|c| c.starts_with(WHITEOUT_META) && c != WHITEOUT_OPAQUE) {
            return Ok(());
        }
        if components(directory).any(|c| c.starts_with(WHITEOUT)) {
            return Err(Reason::ThroughWhiteout);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(directory, name, hidden, &entry);
        }
        let (content, mode) = match kind {
            EntryKind::Directory => return self.directory(directory, name, &entry),
            EntryKind::Hardlink(target) => return self.hardlink(directory, name, target),
            EntryKind::File { size: 0, .. } => (Content::Blocks { start: 0, size: 0 }, format::S_IFREG),
            EntryKind::File { data, size } => {
                let start = (self.tar_start + data) / format::BLOCK_SIZE;
                let start = u32::try_from(start).map_err(|_| Reason::Range("the position of the data"))?;
                (Content::Blocks { start, size: *size }, format::S_IFREG)
            }
            EntryKind::Sparse(map) => {
                let mut at = self.tar_start + map.data;
                let segments = map.segments.iter().map(|(offset, len)| {
                    let segment = Segment { offset: *offset, len: *len, at };
                    at += len;
                    segment
                });
                (Content::Sparse(Box::new(Sparse::new(map.size, segments)?)), format::S_IFREG)
            }
            EntryKind::Symlink(target) if target.is_empty() => return Err(Reason::EmptyTarget),
            EntryKind::Symlink(target) if target.len() > MAX_TARGET => {
                return Err(Reason::Limit { field: "path_bytes", limit: MAX_TARGET as u64 });
            }
            EntryKind::Symlink(target) => (Content::Symlink(target.clone().into()), format::S_IFLNK),
            EntryKind::CharDevice(0, 0) => return Err(Reason::WhiteoutDevice),
            EntryKind::CharDevice(major, minor) => (device(*major, *minor)?, format::S_IFCHR),
            EntryKind::BlockDevice(major, minor) => (device(*major, *minor)?, format::S_IFBLK),
            EntryKind::Fifo => (Content::None, format::S_IFIFO),
        };
        let meta = self.meta(&entry, mode)?;
        let parent = self.make_parents(directory)?;
        self.tree.insert(parent, name, meta, content).map(drop)
    }

    fn directory(&mut self, directory: &[u8], name: &[u8], entry: &Entry) -> Result<(), Reason> {
        let meta = self.meta(entry, format::S_IFDIR)?;
        let parent = self.make_parents(directory)?;
        match self.tree.lookup(parent, name) {
            Some(known) if *self.tree.content(known) == Content::Directory => self.tree.set_meta(known, meta),
            known => {
                let hides = known.is_some_and(|known| self.is_whiteout(known));
                let inode = self.tree.insert(parent, name, meta, Content::Directory)?;
                if hides {
                    self.tree.set_opaque(inode);
                }
            }
        }
        Ok(())
    }

    fn hardlink(&mut self, directory: &[u8], name: &[u8], target: &[u8]) -> Result<(), Reason> {
        let shown = || EntryName::new(target);
        let split = self.split(target).map_err(|_| Reason::LinkPath(shown()))?;
        let Some((target_directory, target_name)) = split else {
            return Err(Reason::LinkToDirectory(shown()));
        };
        let found = match self.walk(target_directory, false) {
            Ok(parent) => self.tree.lookup(parent, target_name),
            Err(_) => None,
        };
        let inode = found.ok_or_else(|| Reason::LinkMissing(shown()))?;
        if *self.tree.content(inode) == Content::Directory {
            return Err(Reason::LinkToDirectory(shown()));
        }
        if self.is_whiteout(inode) {
            return Err(Reason::LinkToWhiteout(shown()));
        }
        let parent = self.make_parents(directory)?;
        if self.tree.lookup(parent, name) == Some(inode) {
            // GNU tar writes a file that was named twice as a link to itself.
            return Ok(());
        }
        self.tree.link(parent, name, inode)
    }

    fn whiteout(
        &mut self,
        directory: &[u8],
        name: &[u8],
        hidden: &[u8],
        entry: &Entry,
    ) -> Result<(), Reason> {
        if name == WHITEOUT_OPAQUE {
            let parent = self.make_parents(directory)?;
            self.tree.set_opaque(parent);
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Reason::WhiteoutName);
        }
        let parent = self.make_parents(directory)?;
        match self.tree.lookup(parent, hidden) {
            None => {
                let mode = format::S_IFCHR;
                let (mtime, mtime_nsec) = (entry.mtime, entry.mtime_nsec);
                let meta = Meta { mode, mtime, mtime_nsec, ..Meta::IMPLICIT_DIRECTORY };
                self.tree.insert(parent, hidden, meta, WHITEOUT_DEVICE)?;
            }
            Some(known) if *self.tree.content(known) == Content::Directory => self.tree.set_opaque(known),
            Some(_) => {}
        }
        Ok(())
    }

    fn is_whiteout(&self, inode: InodeId) -> bool {
        self.tree.meta(inode).mode & format::S_IFMT == format::S_IFCHR
            && *self.tree.content(inode) == WHITEOUT_DEVICE
    }

    fn meta(&mut self, entry: &Entry, kind: u16) -> Result<Meta, Reason> {
        let has_user_attributes = kind == format::S_IFREG || kind == format::S_IFDIR;
        let kept = |name: &[u8]| {
            let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
            let foreign = !([&b"user."[..], b"trusted.", b"security."].iter().any(|p| name.starts_with(p))
                || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default"));
            !overlay && !foreign && (has_user_attributes || !name.starts_with(b"user."))
        };
        let mut xattrs = XattrId::default();
        if !entry.xattrs.is_empty() {
            let known = entry.xattrs.iter().filter(|(name, _)| kept(name));
            self.dropped_xattrs += (entry.xattrs.len() - known.clone().count()) as u64;
            xattrs = self.tree.xattrs(known.map(|(n, v)| (&n[..], &v[..])), self.limits.xattr_bytes)?;
        }
        let permissions = if kind == format::S_IFLNK { 0o777 } else { entry.mode };
        let (uid, gid, mtime, mtime_nsec) = (entry.uid, entry.gid, entry.mtime, entry.mtime_nsec);
        Ok(Meta { mode: kind | permissions, uid, gid, mtime, mtime_nsec, xattrs })
    }

    /// Splits a path into the part before its last component, and that; `None` for the root.
    fn split<'p>(&self, path: &'p [u8]) -> Result<Option<Split<'p>>, Reason> {
        if path.is_empty() {
            return Err(Reason::EmptyName);
        }
        if path.len() > self.limits.path_bytes {
            return Err(Reason::Limit { field: "path_bytes", limit: self.limits.path_bytes as u64 });
        }
        let mut depth = 0;
        for component in components(path) {
            depth += 1;
            match component {
                b".." => return Err(Reason::DotDot),
                c if c.len() > format::NAME_MAX => return Err(Reason::NameTooLong),
                c if c.contains(&0) => return Err(Reason::NulInName),
                _ => {}
            }
        }
        if depth > self.limits.path_depth {
            return Err(Reason::Limit { field: "path_depth", limit: self.limits.path_depth as u64 });
        }
        let mut end = path.len();
        loop {
            let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
            match &path[start..end] {
                b"" | b"." if start == 0 => return Ok(None),
                b"" | b"." => end = start - 1,
                name => return Ok(Some((&path[..start], name))),
            }
        }
    }

    fn make_parents(&mut self, directory: &[u8]) -> Result<InodeId, Reason> {
        self.walk(directory, true)
    }

    /// Walks to a directory, following symlinks inside the layer. What is missing is made, or is an error.
    fn walk(&mut self, directory: &[u8], make: bool) -> Result<InodeId, Reason> {
        let mut path = vec![Tree::ROOT];
        let mut rest = Cow::Borrowed(directory);
        let (mut at, mut steps, mut links) = (0, 0, 0);
        while let Some(offset) = rest[at..].iter().position(|b| *b != b'/') {
            let start = at + offset;
            let end = rest[start..].iter().position(|b| *b == b'/').map_or(rest.len(), |slash| start + slash);
            let component = &rest[start..end];
            at = end;
            steps += 1;
            if steps > self.limits.path_depth.saturating_mul(4) + MAX_SYMLINKS {
                return Err(Reason::SymlinkLoop);
            }
            let here = path[path.len() - 1];
            match component {
                b"." => continue,
                b".." => {
                    path.truncate((path.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let known = self.tree.lookup(here, component);
            match known.map(|known| (known, self.tree.content(known))) {
                Some((known, Content::Directory)) => path.push(known),
                Some((_, Content::Symlink(target))) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Reason::SymlinkLoop);
                    }
                    if target.starts_with(b"/") {
                        path.truncate(1);
                    }
                    rest = Cow::Owned([target, &b"/"[..], &rest[end..]].concat());
                    at = 0;
                }
                Some((known, _)) if !self.is_whiteout(known) => return Err(Reason::NotDirectory),
                _ if !make => return Err(Reason::NotDirectory),
                found => {
                    let hides = found.is_some();
                    let made =
                        self.tree.insert(here, component, Meta::IMPLICIT_DIRECTORY, Content::Directory)?;
                    if hides {
                        self.tree.set_opaque(made);
                    }
                    path.push(made);
                }
            }
        }
        Ok(path[path.len() - 1])
    }
}

/// The components of a path that name something.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !matches!(*c, b"" | b"."))
}

fn device(major: u32, minor: u32) -> Result<Content, Reason> {
    format::encode_device(major, minor).map(Content::Device).ok_or(Reason::Range("the device number"))
}
