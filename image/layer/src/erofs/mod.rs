//! Writing EROFS: the on-disk structures, a tree of inodes in memory, and the file they end up in.
//!
//! A file has, in this order: the head ([`head`](tar_range): our record and the superblock, 4 KiB), file data, directory
//! blocks, inodes. Data is appended first through a [`Writer`]; a [`Tree`] that says what stands where is put together on
//! the side; [`finish`] writes the rest, the superblock last. Equal input makes equal bytes.

pub mod format;
mod head;
mod plan;
mod sparse;
mod tree;
mod writer;

pub use head::{Identity, TarRange, tar_range};
pub use plan::finish;
pub use sparse::{Segment, Sparse};
pub use tree::{Content, InodeId, Meta, Tree, XattrId};
pub use writer::Writer;
