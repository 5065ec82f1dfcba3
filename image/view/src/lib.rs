//! What stands in layer filesystems: reading, merging, and writing them as ext4, tar or a GPT disk.

pub mod disk;
pub mod erofs;
mod error;
pub mod ext4;
pub mod merged;
pub mod reader;
pub mod tar;

pub use error::{Error, Result};
pub use ext4::scratch;
