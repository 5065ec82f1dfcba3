//! Several layers seen as one tree, exactly as overlayfs shows them to a container.
//!
//! Source: `Documentation/filesystems/overlayfs.rst` and `fs/overlayfs/namei.c` (Linux 6.12). A name belongs to the
//! highest layer that has it. A character device 0:0 there hides it in all layers below and is not shown itself.
//! Directories of the same name merge, with the highest one's attributes, down to the first that is opaque
//! (`trusted.overlay.opaque=y`) or the first layer where the name is something else. The kernel looks for no mark on a
//! layer's root; a layer whose root is opaque (`.wh..wh..opq` in it) hides all lower ones nevertheless, and who stacks
//! layers in a guest leaves those out as is done here. Hard links stay links inside one layer. `trusted.overlay.*` attributes are
//! overlayfs' own and not shown; the escaped `trusted.overlay.overlay.*` are shown unescaped.
//!
//! Memory: a listing holds one directory block (at most 4 KiB) per layer, whatever the size of the directory. A
//! [`Walk`] adds about 100 bytes plus 24 per layer and the name for every directory that was seen but not yet
//! visited. [`Limits`] bound a walk over a hostile file.

mod walk;

use std::iter::Peekable;

pub use walk::{Folder, FolderPath, Limits, Walk};

use crate::error::{Error, Result};
use crate::reader::{Dir, Image, Inode, Meta, Runs, Xattr};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const PRIVATE: &[u8] = b"trusted.overlay.";
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
/// Attributes that make the kernel look for contents under other names or in other layers.
const FOREIGN: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Most layers overlayfs stacks (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;

/// Layers stacked into one tree.
#[derive(Debug)]
pub struct Merged {
    /// Highest first.
    layers: Vec<Image>,
}

/// Which inode of which layer: equal for two names of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Index of the layer, 0 being the highest.
    pub layer: u16,
    /// Inode number in that layer.
    pub nid: u64,
}

/// A directory of one layer that takes part in a merged directory.
#[derive(Clone, Copy, Debug)]
struct Part {
    id: NodeId,
    /// Inode number of the parent in the same layer, which `..` has to name.
    parent: u64,
}

/// Something in the merged tree.
#[derive(Clone, Debug)]
pub struct Node {
    layer: u16,
    inode: Inode,
    /// For directories: what they are merged from, highest first, this inode included.
    parts: Vec<Part>,
}

impl Node {
    /// Identity of the inode that is shown.
    pub fn id(&self) -> NodeId {
        NodeId { layer: self.layer, nid: self.inode.nid }
    }

    /// What `stat` says, except `nlink`, which counts names hidden by other layers too.
    pub fn meta(&self) -> Meta {
        self.inode.meta()
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.inode.is_dir()
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.inode.is_file()
    }

    /// Whether this is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.inode.is_symlink()
    }

    /// The inode in its layer's file.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// Whether other names of this file may exist.
    pub fn may_have_links(&self) -> bool {
        !self.is_dir() && self.meta().nlink > 1
    }
}

impl Merged {
    /// Stacks `layers`, lowest first, as a manifest lists them.
    ///
    /// # Errors
    /// When there are no layers or more than [`MAX_LAYERS`].
    pub fn new(mut layers: Vec<Image>) -> Result<Self> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(Error::Invalid(format!(
                "cannot stack {} layers: 1 to {MAX_LAYERS} work",
                layers.len()
            )));
        }
        layers.reverse();
        Ok(Self { layers })
    }

    /// The merged root directory.
    ///
    /// # Errors
    /// When a layer's root cannot be read.
    pub fn root(&self) -> Result<Node> {
        let mut parts = Vec::with_capacity(self.layers.len());
        for (layer, image) in (0..).zip(&self.layers) {
            let root = image.root()?;
            parts.push(Part { id: NodeId { layer, nid: root.nid }, parent: root.nid });
            if self.ends_merge(image, &root)? {
                break;
            }
        }
        Ok(Node { layer: 0, inode: self.layers[0].root()?, parts })
    }

    /// The names in `dir` in byte order, each with what it stands for.
    ///
    /// # Errors
    /// When a layer's directory cannot be read.
    pub fn children(&self, dir: &Node) -> Result<Children<'_>> {
        self.children_of(&dir.parts)
    }

    /// What `name` stands for in `dir`; `None` when there is no such name.
    ///
    /// # Errors
    /// When a layer's directory cannot be read.
    pub fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>> {
        let mut found = Vec::with_capacity(1);
        for part in &dir.parts {
            let image = self.layer(part.id.layer);
            if let Some(nid) = image.lookup(&image.inode(part.id.nid)?, name)? {
                found.push((*part, nid));
            }
        }
        self.resolve(&found)
    }

    fn children_of(&self, parts: &[Part]) -> Result<Children<'_>> {
        let mut cursors = Vec::with_capacity(parts.len());
        for part in parts {
            let image = self.layer(part.id.layer);
            let names = image.dir(&image.inode(part.id.nid)?)?.within(part.parent);
            cursors.push(Cursor { part: *part, names: names.peekable() });
        }
        Ok(Children { merged: self, cursors })
    }

    /// The node with identity `id` seen as if nothing were merged into it.
    pub(crate) fn meta_of(&self, id: NodeId) -> Result<Inode> {
        self.layer(id.layer).inode(id.nid)
    }

    /// Extended attributes a container sees, sorted by name.
    ///
    /// # Errors
    /// When the layer's attributes are damaged.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        let mut all = self.layer(node.layer).xattrs(&node.inode)?;
        all.retain_mut(|xattr| {
            if xattr.name.starts_with(ESCAPED) {
                xattr.name.drain(..ESCAPED.len() - PRIVATE.len());
                xattr.name[..PRIVATE.len()].copy_from_slice(PRIVATE);
                return true;
            }
            !xattr.name.starts_with(PRIVATE)
        });
        all.sort();
        Ok(all)
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// When the target is damaged or a read fails.
    pub fn link_target(&self, node: &Node) -> Result<Vec<u8>> {
        self.layer(node.layer).link_target(&node.inode)
    }

    /// The layer file that holds a node's contents.
    pub fn image(&self, node: &Node) -> &Image {
        self.layer(node.layer)
    }

    /// Where a file's contents lie in [`Merged::image`].
    pub fn runs(&self, node: &Node) -> Runs<'_> {
        self.layer(node.layer).runs(&node.inode)
    }

    fn layer(&self, index: u16) -> &Image {
        &self.layers[usize::from(index)]
    }

    /// The node for `name`, given its entries from high to low; `None` if it is deleted.
    fn resolve(&self, found: &[(Part, u64)]) -> Result<Option<Node>> {
        let mut node: Option<Node> = None;
        for (parent, nid) in found {
            let layer = parent.id.layer;
            let image = self.layer(layer);
            let inode = image.inode(*nid)?;
            let part = Part { id: NodeId { layer, nid: *nid }, parent: parent.id.nid };
            match &mut node {
                None if inode.is_whiteout() => return Ok(None),
                None if !inode.is_dir() => return Ok(Some(Node { layer, inode, parts: Vec::new() })),
                None => node = Some(Node { layer, inode, parts: vec![part] }),
                Some(_) if !inode.is_dir() => break,
                Some(node) => node.parts.push(part),
            }
            if self.ends_merge(image, &inode)? {
                break;
            }
        }
        Ok(node)
    }

    fn ends_merge(&self, image: &Image, dir: &Inode) -> Result<bool> {
        let xattrs = image.xattrs(dir)?;
        if let Some(foreign) = xattrs.iter().find(|x| FOREIGN.contains(&x.name.as_slice())) {
            let name = String::from_utf8_lossy(&foreign.name).into_owned();
            return Err(image.damaged(dir.nid, format!("a layer must not carry {name}")));
        }
        Ok(xattrs.iter().any(|x| x.name == OPAQUE && x.value == b"y"))
    }
}

#[derive(Debug)]
struct Cursor<'a> {
    part: Part,
    names: Peekable<Dir<'a>>,
}

/// A name and what it stands for.
#[derive(Clone, Debug)]
pub struct Child {
    /// 1 to 255 bytes.
    pub name: Vec<u8>,
    /// What it stands for.
    pub node: Node,
}

/// Iterator over a merged directory, in byte order of the names.
#[derive(Debug)]
pub struct Children<'a> {
    merged: &'a Merged,
    /// Highest layer first.
    cursors: Vec<Cursor<'a>>,
}

impl Children<'_> {
    fn advance(&mut self) -> Result<Option<Child>> {
        loop {
            let mut least: Option<Vec<u8>> = None;
            for cursor in &mut self.cursors {
                match cursor.names.peek() {
                    Some(Ok(entry)) if least.as_ref().is_none_or(|name| entry.name < *name) => {
                        least = Some(entry.name.clone());
                    }
                    Some(Err(_)) => return cursor.names.next().transpose().map(|_| None),
                    _ => {}
                }
            }
            let Some(name) = least else { return Ok(None) };
            let mut found = Vec::with_capacity(1);
            for cursor in &mut self.cursors {
                let here = |entry: &Result<crate::reader::DirEntry>| matches!(entry, Ok(e) if e.name == name);
                if let Some(Ok(entry)) = cursor.names.next_if(here) {
                    found.push((cursor.part, entry.nid));
                }
            }
            if let Some(node) = self.merged.resolve(&found)? {
                return Ok(Some(Child { name, node }));
            }
        }
    }
}

impl Iterator for Children<'_> {
    type Item = Result<Child>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, Some(Err(_))) {
            self.cursors.clear();
        }
        next
    }
}
