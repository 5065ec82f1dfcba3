//! The differ: layer blobs become file systems in the image store, never a tree of files on the host.

mod blob;
pub mod convert;
pub mod service;
