//! What stands in layer filesystems: reading, merging, and writing them as ext4, tar or a GPT disk.

pub mod disk;
mod error;
pub mod ext4;
pub mod merged;
pub mod reader;

pub use error::{Error, Result};
pub use ext4::scratch;
