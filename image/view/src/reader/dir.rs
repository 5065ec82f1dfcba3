//! Directory contents, one block at a time.

use cloister_layer::erofs::format::{DIRENT_SIZE, Dirent, NAME_MAX};

use super::{Image, Inode};
use crate::error::Result;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// 1 to 255 bytes without `/` and NUL; never `.` or `..`.
    pub name: Vec<u8>,
    /// Inode number, unchecked: reading it checks it.
    pub nid: u64,
    /// The kind the directory claims (see `format::file_type`), unchecked.
    pub file_type: u8,
}

/// The names of a directory in ascending byte order, without `.` and `..`. Holds one block.
#[derive(Debug)]
pub struct Dir<'a> {
    image: &'a Image,
    inode: Inode,
    block: Vec<u8>,
    /// Byte offset of the next block in the directory.
    next_block: u64,
    /// Entries of `block`, and how many were handed out.
    count: usize,
    index: usize,
    /// Last name seen, `.` and `..` included: order is checked over the whole directory.
    last: Vec<u8>,
    /// What `..` has to name, if that is known.
    parent: Option<u64>,
    parent_seen: bool,
    failed: bool,
}

impl Image {
    /// The names in `inode`.
    ///
    /// # Errors
    /// When it is not a directory.
    pub fn dir(&self, inode: &Inode) -> Result<Dir<'_>> {
        if !inode.is_dir() {
            return Err(self.damaged(inode.nid, "it is not a directory"));
        }
        Ok(Dir {
            image: self,
            inode: *inode,
            block: Vec::new(),
            next_block: 0,
            count: 0,
            index: 0,
            last: Vec::new(),
            parent: None,
            parent_seen: false,
            failed: false,
        })
    }

    /// Finds `name` in directory `inode` by looking at every entry before it.
    ///
    /// # Errors
    /// When the directory is damaged or a read fails.
    pub fn lookup(&self, inode: &Inode, name: &[u8]) -> Result<Option<u64>> {
        for entry in self.dir(inode)? {
            let entry = entry?;
            match entry.name.as_slice().cmp(name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(Some(entry.nid)),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }
}

impl Dir<'_> {
    /// Requires that `..` names inode `parent`. A directory has one parent, so trees that are checked this way on
    /// the way down have no cycles.
    pub fn within(mut self, parent: u64) -> Self {
        self.parent = Some(parent);
        self
    }

    fn advance(&mut self) -> Result<Option<DirEntry>> {
        loop {
            if self.index == self.count && !self.load()? {
                if self.parent.is_some() && !self.parent_seen {
                    return Err(self.damaged("it has no entry for its parent"));
                }
                return Ok(None);
            }
            let entry = self.entry(self.index)?;
            self.index += 1;
            if entry.name.as_slice() <= self.last.as_slice() {
                return Err(self.damaged("its names are not in order"));
            }
            self.last.clone_from(&entry.name);
            if entry.name == b".." {
                if self.parent.is_some_and(|parent| parent != entry.nid) {
                    return Err(self.damaged(format!("its parent is inode {} by its own account", entry.nid)));
                }
                self.parent_seen = true;
            } else if entry.name != b"." {
                return Ok(Some(entry));
            }
        }
    }

    /// Reads the next block; false at the end.
    fn load(&mut self) -> Result<bool> {
        let left = self.inode.raw.size.saturating_sub(self.next_block);
        if left == 0 {
            return Ok(false);
        }
        self.block.resize(left.min(self.image.block_size()) as usize, 0);
        self.image.read_at(&self.inode, self.next_block, &mut self.block)?;
        self.next_block += self.block.len() as u64;
        let Some(head) = self.block.first_chunk::<DIRENT_SIZE>() else {
            return Err(self.damaged("a directory block is too short for an entry"));
        };
        let names = usize::from(Dirent::decode(head).name_offset);
        if names == 0 || names % DIRENT_SIZE != 0 || names >= self.block.len() {
            return Err(self.damaged(format!("a directory block puts its names at {names}")));
        }
        (self.count, self.index) = (names / DIRENT_SIZE, 0);
        Ok(true)
    }

    fn entry(&self, index: usize) -> Result<DirEntry> {
        let dirent = self.dirent(index)?;
        let start = usize::from(dirent.name_offset);
        let end = if index + 1 < self.count {
            usize::from(self.dirent(index + 1)?.name_offset)
        } else {
            self.block.len()
        };
        let Some(name) = self.block.get(start..end).filter(|_| start >= self.count * DIRENT_SIZE) else {
            return Err(self.damaged(format!("name {index} of a directory block lies outside it")));
        };
        // The last name may be shorter than its room; all others fill it.
        let name = match name.iter().position(|b| *b == 0) {
            Some(nul) if index + 1 == self.count => &name[..nul],
            _ => name,
        };
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) || name.contains(&b'/') {
            return Err(self.damaged(format!("{:?} is not a file name", String::from_utf8_lossy(name))));
        }
        Ok(DirEntry { name: name.to_vec(), nid: dirent.nid, file_type: dirent.file_type })
    }

    fn dirent(&self, index: usize) -> Result<Dirent> {
        let bytes = self.block.get(index * DIRENT_SIZE..).and_then(|b| b.first_chunk());
        bytes.map(Dirent::decode).ok_or_else(|| self.damaged("a directory block is cut short"))
    }

    fn damaged(&self, why: impl Into<String>) -> crate::Error {
        self.image.damaged(self.inode.nid, why)
    }
}

impl Iterator for Dir<'_> {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
