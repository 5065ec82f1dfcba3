//! Our own ext4 writer: no mkfs on the host, deterministic, sparse.
//!
//! What is left out, and why:
//! - **no journal**: a scratch disk dies with its VM and an exported file is written once, so there is nothing to
//!   replay; a journal would double metadata writes and cost 128 MiB;
//! - **no metadata checksums**: the file lies on the host's own file system; group descriptors carry the CRC-16
//!   that allows uninitialised groups, which is what makes a big empty file system cheap;
//! - **no backup superblocks, no resize inode**: a new file costs less than a repair.

mod crc16;
mod dir;
mod extent;
mod file;
mod inode;
mod layout;
mod output;
pub mod scratch;
mod tree;
mod xattr;

pub use tree::{Options, Size, Summary, write};
