//! A whole tree as one ext4 file system.
//!
//! The tree is visited twice by the same code: first only counting, which gives the exact size, then writing. Inode
//! numbers and blocks are handed out in the order of the visit, so equal trees give equal bytes.
//!
//! Memory: the walk (see [`crate::merged`]), 40 bytes for every inode with several names, and 256 KiB of buffer.

use std::collections::HashMap;
use std::fs::File;

use super::dir::DirWriter;
use super::file;
use super::inode::{FLAG_EXTENTS, Inode, TIME_RANGE, device_block, dirent_type};
use super::layout::{BLOCK, FIRST_INODE, Geometry, Identity, ROOT_INODE, Usage, write_bookkeeping};
use super::output::Output;
use super::xattr;
use crate::error::{Error, Result};
use crate::merged::{Child, Folder, Limits, Merged, Node, NodeId, Walk};

/// Names one file may have (`EXT4_LINK_MAX`); a directory with more subdirectories has a link count of 1.
const LINK_MAX: u32 = 65000;
/// Shortest symlink target that does not fit into the inode.
const SLOW_SYMLINK: usize = 60;

/// How big the file system becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Exactly what the tree takes: a full file system.
    Exact,
    /// What the tree takes and this many free bytes, with an inode for every 16 KiB of them.
    Slack(u64),
    /// This many bytes, an error if the tree does not fit.
    Total(u64),
}

/// How to write a tree.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the file system.
    pub size: Size,
    /// File system UUID; derive it from what the tree is made of.
    pub uuid: [u8; 16],
    /// Label, at most 16 bytes are kept.
    pub label: Vec<u8>,
    /// Bounds on the tree.
    pub limits: Limits,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the file.
    pub bytes: u64,
    /// Inodes used by the tree, the root included.
    pub inodes: u64,
}

/// Replaces the contents of `file`, a regular file open for reading and writing, by an ext4 file system of `tree`.
///
/// # Errors
/// When the tree holds what ext4 cannot express or does not fit, when a layer is damaged, or a write fails.
pub fn write(file: &File, tree: &Merged, options: &Options) -> Result<Summary> {
    let mut counter = Writer::new(tree, Output::counting(), HashMap::new(), None);
    counter.visit(options.limits)?;
    let data = counter.out.next_block();
    let inodes = u64::from(counter.next_inode - 1);
    let geometry = geometry(options.size, data, inodes)?;

    let length = geometry.blocks * BLOCK;
    file.set_len(0).and_then(|()| file.set_len(length)).map_err(|e| Error::io("size the ext4 file", e))?;
    let counted = counter.links.into_iter().map(|(id, link)| (id, link.names)).collect();
    let mut writer = Writer::new(tree, Output::writing(file, geometry), counted, Some(geometry));
    writer.visit(options.limits)?;
    let usage = Usage {
        next_block: writer.out.next_block(),
        next_inode: writer.next_inode,
        directories: writer.directories,
    };
    let id = Identity { uuid: options.uuid, label: options.label.clone() };
    write_bookkeeping(file, &geometry, &usage, &id)?;
    Ok(Summary { bytes: length, inodes: inodes - u64::from(FIRST_INODE) + 2 })
}

fn geometry(size: Size, data: u64, inodes: u64) -> Result<Geometry> {
    let least = Geometry::fitting(data, inodes)?;
    match size {
        Size::Exact => Ok(least),
        Size::Slack(bytes) => Geometry::fitting(data + bytes.div_ceil(BLOCK), inodes + bytes.div_ceil(16384)),
        Size::Total(bytes) => {
            let geometry = Geometry::new(bytes / BLOCK, inodes);
            match geometry {
                Ok(geometry) if geometry.data_start() + data <= geometry.blocks => Ok(geometry),
                _ => Err(Error::Invalid(format!(
                    "the tree does not fit into {bytes} bytes of ext4, it needs {}",
                    least.blocks * BLOCK
                ))),
            }
        }
    }
}

/// A file with several names.
struct Link {
    inode: u32,
    /// Names met so far.
    names: u32,
    written: bool,
}

/// What a directory's parent knew about it.
#[derive(Clone, Copy)]
struct Place {
    inode: u32,
    parent: u32,
}

struct Writer<'a> {
    tree: &'a Merged,
    out: Output<'a>,
    next_inode: u32,
    links: HashMap<NodeId, Link>,
    /// Final number of names, from the counting visit.
    names: HashMap<NodeId, u32>,
    geometry: Option<Geometry>,
    directories: Vec<u16>,
}

impl<'a> Writer<'a> {
    fn new(
        tree: &'a Merged,
        out: Output<'a>,
        names: HashMap<NodeId, u32>,
        geometry: Option<Geometry>,
    ) -> Self {
        let groups = geometry.map_or(0, |g| g.groups() as usize);
        let (links, directories) = (HashMap::new(), vec![0; groups]);
        Self { tree, out, next_inode: FIRST_INODE, links, names, geometry, directories }
    }

    fn visit(&mut self, limits: Limits) -> Result<()> {
        let root = Place { inode: ROOT_INODE, parent: ROOT_INODE };
        let mut walk = Walk::new(self.tree, limits, root)?;
        while let Some(folder) = walk.next_folder() {
            let first = self.next_inode;
            self.list(&walk, &folder)?;
            self.fill(&mut walk, &folder, first)?;
        }
        Ok(())
    }

    /// Writes the directory itself, numbering what it names.
    fn list(&mut self, walk: &Walk<'_, Place>, folder: &Folder<Place>) -> Result<()> {
        let Place { inode, parent } = folder.note;
        let mut names = DirWriter::new(&mut self.out, inode, parent)?;
        let mut subdirectories = 0u32;
        for child in walk.children(folder)? {
            let child = child?;
            let number = self.number(&child, folder)?;
            let mode = child.node.meta().mode;
            names.add(&mut self.out, &child.name, number, dirent_type(mode))?;
            subdirectories += u32::from(child.node.is_dir());
        }
        let (block, blocks, tree_blocks) = names.finish(&mut self.out)?;
        let links = if subdirectories > LINK_MAX - 2 { 1 } else { subdirectories as u16 + 2 };
        let body = Body { size: blocks * BLOCK, blocks: blocks + tree_blocks, flags: FLAG_EXTENTS, block };
        self.put(&folder.path.join(b""), &walk.node(folder)?, inode, links, body)?;
        if let Some(geometry) = self.geometry {
            self.directories[((inode - 1) / geometry.inodes_per_group) as usize] += 1;
        }
        Ok(())
    }

    /// Writes everything in the directory that is no directory, in the order in which it was numbered.
    fn fill(&mut self, walk: &mut Walk<'_, Place>, folder: &Folder<Place>, first: u32) -> Result<()> {
        let mut next = first;
        for child in walk.children(folder)? {
            let child = child?;
            let number = match self.links.get_mut(&child.node.id()) {
                Some(link) if !child.node.is_dir() => {
                    if std::mem::replace(&mut link.written, true) {
                        continue;
                    }
                    link.inode
                }
                _ => next,
            };
            next += 1;
            if child.node.is_dir() {
                walk.push(folder, child, Place { inode: number, parent: folder.note.inode })?;
            } else {
                let bytes = self.write_leaf(&folder.path.join(&child.name), &child.node, number)?;
                walk.count_data(bytes)?;
            }
        }
        Ok(())
    }

    fn number(&mut self, child: &Child, folder: &Folder<Place>) -> Result<u32> {
        if child.node.may_have_links() {
            if let Some(link) = self.links.get_mut(&child.node.id()) {
                link.names += 1;
                if link.names > LINK_MAX {
                    let path = folder.path.join(&child.name);
                    return Err(refuse(&path, format!("it has more than {LINK_MAX} names")));
                }
                return Ok(link.inode);
            }
            let link = Link { inode: self.next_inode, names: 1, written: false };
            self.links.insert(child.node.id(), link);
        }
        let number = self.next_inode;
        let Some(next) = number.checked_add(1) else {
            return Err(Error::Invalid("the tree has too many files for ext4".into()));
        };
        self.next_inode = next;
        Ok(number)
    }

    /// Writes a file, symlink or special file; the bytes of contents copied.
    fn write_leaf(&mut self, path: &[u8], node: &Node, number: u32) -> Result<u64> {
        let meta = node.meta();
        let mut copied = 0;
        let body = if node.is_file() {
            let runs = self.tree.runs(node);
            let written = file::write(&mut self.out, self.tree.image(node), runs, meta.size)?;
            copied = written.bytes;
            Body { size: meta.size, blocks: written.blocks, flags: FLAG_EXTENTS, block: written.root }
        } else if node.is_symlink() {
            self.symlink(&self.tree.link_target(node)?)?
        } else {
            Body { size: 0, blocks: 0, flags: 0, block: device_block(meta.rdev.0, meta.rdev.1) }
        };
        let links = self.names.get(&node.id()).copied().unwrap_or(1);
        self.put(path, node, number, links as u16, body)?;
        Ok(copied)
    }

    fn symlink(&mut self, target: &[u8]) -> Result<Body> {
        let size = target.len() as u64;
        let mut block = [0; 60];
        if target.len() < SLOW_SYMLINK {
            block[..target.len()].copy_from_slice(target);
            return Ok(Body { size, blocks: 0, flags: 0, block });
        }
        let mut contents = [0; BLOCK as usize];
        contents[..target.len()].copy_from_slice(target);
        let at = self.out.allocate(1)?;
        self.out.write_block(at, &contents)?;
        let mut tree = super::extent::ExtentTree::default();
        tree.push(&mut self.out, 0, at, 1)?;
        let (block, tree_blocks) = tree.finish(&mut self.out)?;
        Ok(Body { size, blocks: 1 + tree_blocks, flags: FLAG_EXTENTS, block })
    }

    /// Writes the inode record and the attribute block.
    fn put(&mut self, path: &[u8], node: &Node, number: u32, links: u16, body: Body) -> Result<()> {
        let meta = node.meta();
        if !TIME_RANGE.contains(&meta.mtime) {
            return Err(refuse(path, format!("its time, {} s, is outside 1901 to 2446", meta.mtime)));
        }
        let xattrs = xattr::encode(&self.tree.xattrs(node)?).map_err(|why| refuse(path, why))?;
        let xattr_block = match &xattrs.block {
            Some(block) => {
                let at = self.out.allocate(1)?;
                self.out.write_block(at, block)?;
                at as u32
            }
            None => 0,
        };
        let record = Inode {
            mode: meta.mode as u16,
            uid: meta.uid,
            gid: meta.gid,
            size: body.size,
            links,
            mtime: (meta.mtime, meta.mtime_nsec),
            blocks: body.blocks + u64::from(xattr_block != 0),
            flags: body.flags,
            block: body.block,
            xattr_block,
            inline_xattrs: xattrs.inline,
        };
        self.out.write_inode(number, &record.encode())
    }
}

/// The part of an inode that depends on its type.
struct Body {
    size: u64,
    blocks: u64,
    flags: u32,
    block: [u8; 60],
}

fn refuse(path: &[u8], why: impl Into<String>) -> Error {
    Error::unrepresentable(path, "ext4", why)
}
