//! What the reader hands out.

/// One entry of a tar, extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path as recorded, not normalised.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits including set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of `mtime`.
    pub mtime_nsec: u32,
    /// Extended attributes, names with prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Type of an entry, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file whose `size` bytes are at `data` in the tar.
    File {
        /// Position in the tar, a multiple of 512.
        data: u64,
        /// Bytes.
        size: u64,
    },
    /// A regular file with holes.
    Sparse(SparseMap),
    /// Another name for the file at this path.
    Hardlink(Vec<u8>),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Data segments of a sparse file; their bytes stand one after the other in the tar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SparseMap {
    /// Where the first segment's bytes are in the tar.
    pub data: u64,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Offset and length of each segment, in order, without overlap.
    pub segments: Vec<(u64, u64)>,
}
