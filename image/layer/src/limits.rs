//! What a layer may cost. Every field can be set; the defaults let all images we know of pass.

/// Bounds on one layer. A layer that goes over any of them is refused with an error naming the bound.
///
/// Memory: a conversion holds at most [`Limits::metadata_bytes`] of tree, plus [`Limits::pax_bytes`] twice, plus
/// fixed buffers of about 12 MiB and the decompressor's window ([`Limits::zstd_window_log`] for zstd, 32 KiB for gzip).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the blob as stored (compressed).
    pub compressed_bytes: u64,
    /// Bytes of the tar after decompression, and also of the resulting EROFS file.
    pub uncompressed_bytes: u64,
    /// Tar bytes allowed per compressed byte; looked at only above [`Limits::ratio_floor`].
    pub ratio: u64,
    /// Tar bytes below which the ratio does not matter: small layers of zeros are harmless.
    pub ratio_floor: u64,
    /// Entries in the tar, whiteouts and replaced entries included.
    pub entries: u64,
    /// Names between the root and an entry, and names walked when symlinks are followed on the way (four times this).
    pub path_depth: usize,
    /// Bytes of a path or of a link target.
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one entry, names and values, as stored in EROFS.
    pub xattr_bytes: usize,
    /// Bytes of one PAX header, or of one GNU long name.
    pub pax_bytes: usize,
    /// Data segments in one sparse file.
    pub sparse_segments: usize,
    /// Bytes of inodes, names, attributes and sparse maps kept in memory until the end of the layer.
    pub metadata_bytes: u64,
    /// Largest zstd window accepted, as a power of two in bytes.
    pub zstd_window_log: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed_bytes: 32 << 30,
            uncompressed_bytes: 64 << 30,
            ratio: 256,
            ratio_floor: 1 << 30,
            entries: 2_000_000,
            path_depth: 256,
            path_bytes: 4096,
            xattr_bytes: 64 << 10,
            pax_bytes: 1 << 20,
            sparse_segments: 1 << 16,
            metadata_bytes: 176 << 20,
            zstd_window_log: 25,
        }
    }
}
