//! A merged tree as one EROFS file, through the same writer that makes layers.
//!
//! Memory: the walk (see [`crate::merged`]), 24 bytes for every inode with several names, and the writer's tree of
//! all names, bounded by [`Options::metadata_bytes`].

use std::collections::HashMap;
use std::fs::File;

use cloister_layer::erofs::{
    Content, Identity, InodeId, Meta as TreeMeta, Segment, Sparse, Tree, Writer, finish, format,
};

use crate::error::{Error, Result};
use crate::merged::{Child, Folder, Limits, Merged, Node, NodeId, Walk};

/// Attributes of one inode, in bytes; as much as a layer may have.
const XATTR_BYTES: usize = 64 << 10;
/// Pieces of data in one file with holes.
const MAX_SEGMENTS: usize = 1 << 20;

/// How to write a tree.
#[derive(Clone, Debug)]
pub struct Options {
    /// Volume UUID; derive it from what the tree is made of.
    pub uuid: [u8; 16],
    /// Bounds on the tree.
    pub limits: Limits,
    /// Bytes of names, attributes and inodes kept in memory.
    pub metadata_bytes: u64,
}

impl Options {
    /// The usual bounds: 512 MiB of metadata.
    pub fn new(uuid: [u8; 16]) -> Self {
        Self { uuid, limits: Limits::default(), metadata_bytes: 512 << 20 }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the file.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Writes `tree` into `file`, which must be empty and open for reading and writing.
///
/// # Errors
/// When a layer is damaged, the tree passes a bound, or a write fails.
pub fn write(file: &File, tree: &Merged, options: &Options) -> Result<Summary> {
    let mut copy = Copy {
        from: tree,
        to: Tree::new(options.metadata_bytes),
        writer: Writer::new(file, u64::MAX),
        links: HashMap::new(),
    };
    let root = tree.root()?;
    let meta = copy.meta(&root, b"/")?;
    copy.to.set_meta(Tree::ROOT, meta);
    let mut walk = Walk::new(tree, options.limits, Tree::ROOT)?;
    while let Some(folder) = walk.next_folder() {
        for child in walk.children(&folder)? {
            copy.child(&mut walk, &folder, child?)?;
        }
    }
    let identity = Identity { uuid: options.uuid, tar: None };
    let (bytes, inodes) = finish(copy.writer, copy.to, &identity)?;
    Ok(Summary { bytes, inodes })
}

struct Copy<'a> {
    from: &'a Merged,
    to: Tree,
    writer: Writer<'a>,
    links: HashMap<NodeId, InodeId>,
}

impl Copy<'_> {
    fn child(&mut self, walk: &mut Walk<'_, InodeId>, folder: &Folder<InodeId>, child: Child) -> Result<()> {
        let path = folder.path.join(&child.name);
        let refuse = |why: cloister_layer::Reason| Error::unrepresentable(&path, "EROFS", why.to_string());
        if let Some(first) = self.links.get(&child.node.id()) {
            return self.to.link(folder.note, &child.name, *first).map_err(refuse);
        }
        let meta = self.meta(&child.node, &path)?;
        let content = self.content(walk, &child.node, &path)?;
        let inode = self.to.insert(folder.note, &child.name, meta, content).map_err(refuse)?;
        if child.node.is_dir() {
            walk.push(folder, child, inode)?;
        } else if child.node.may_have_links() {
            self.links.insert(child.node.id(), inode);
        }
        Ok(())
    }

    fn meta(&mut self, node: &Node, path: &[u8]) -> Result<TreeMeta> {
        let xattrs = self.from.xattrs(node)?;
        let pairs = xattrs.iter().map(|x| (x.name.as_slice(), x.value.as_slice()));
        let xattrs = self.to.xattrs(pairs, XATTR_BYTES);
        let meta = node.meta();
        Ok(TreeMeta {
            mode: meta.mode as u16,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            mtime_nsec: meta.mtime_nsec,
            xattrs: xattrs.map_err(|why| Error::unrepresentable(path, "EROFS", why.to_string()))?,
        })
    }

    fn content(&mut self, walk: &mut Walk<'_, InodeId>, node: &Node, path: &[u8]) -> Result<Content> {
        if node.is_dir() {
            return Ok(Content::Directory);
        }
        if node.is_symlink() {
            return Ok(Content::Symlink(self.from.link_target(node)?.into()));
        }
        if node.is_file() {
            return self.file(walk, node, path);
        }
        let meta = node.meta();
        Ok(match meta.mode as u16 & format::S_IFMT {
            format::S_IFCHR | format::S_IFBLK => {
                let device = format::encode_device(meta.rdev.0, meta.rdev.1);
                Content::Device(device.unwrap_or_default())
            }
            _ => Content::None,
        })
    }

    fn file(&mut self, walk: &mut Walk<'_, InodeId>, node: &Node, path: &[u8]) -> Result<Content> {
        let size = node.meta().size;
        let image = self.from.image(node);
        let mut segments = Vec::new();
        let mut stored = 0;
        for run in self.from.runs(node) {
            let run = run?;
            let Some(source) = run.source else { continue };
            walk.count_data(run.len)?;
            // Every run but the last ends at a block, so runs without a hole between them stay adjacent.
            let block = self.writer.copy(image.file(), source, run.len)?;
            stored += run.len;
            segments.push(Segment {
                offset: run.offset,
                len: run.len,
                at: u64::from(block) * format::BLOCK_SIZE,
            });
            if segments.len() > MAX_SEGMENTS {
                let why = format!("it has more than {MAX_SEGMENTS} holes");
                return Err(Error::unrepresentable(path, "EROFS", why));
            }
        }
        if stored == size {
            let start = segments.first().map_or(0, |s| (s.at / format::BLOCK_SIZE) as u32);
            return Ok(Content::Blocks { start, size });
        }
        let sparse = Sparse::new(size, segments)
            .map_err(|why| Error::unrepresentable(path, "EROFS", why.to_string()))?;
        Ok(Content::Sparse(Box::new(sparse)))
    }
}
