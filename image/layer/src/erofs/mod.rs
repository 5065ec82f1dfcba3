//! Writing EROFS: the on-disk structures, a tree of inodes in memory, and the file they end up in.

pub mod format;
