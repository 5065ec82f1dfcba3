//! On-disk structures of EROFS, all little-endian (Linux 6.12, `fs/erofs/erofs_fs.h`).
//!
//! Only what is written here is defined: uncompressed files in 512-byte blocks and extended (64-byte) inodes;
//! compact inodes are decoded too, so that a reader can take files from other tools.

/// Byte offset of the superblock in the file.
pub const SUPER_OFFSET: u64 = 1024;
/// Bytes of a superblock without extension slots.
pub const SUPER_SIZE: usize = 128;
/// First four bytes of a superblock.
pub const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
/// log2 of the block size used for everything written here: tar keeps file data at multiples of 512 bytes.
pub const BLOCK_BITS: u8 = 9;
/// Bytes per block.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_BITS;
/// Bytes per inode slot: an inode's number (nid) is its distance from the metadata start in slots.
pub const SLOT_SIZE: u64 = 32;
/// Bytes of an extended inode.
pub const INODE_SIZE: usize = 64;
/// Bytes of a compact inode.
pub const COMPACT_INODE_SIZE: usize = 32;
/// Bytes of a directory entry without its name.
pub const DIRENT_SIZE: usize = 12;
/// Longest file name, bytes.
pub const NAME_MAX: usize = 255;
/// Block address of a hole in a chunk map.
pub const NULL_ADDR: u32 = u32::MAX;
/// Bytes before the first entry of an inode's attributes.
pub const XATTR_HEADER_SIZE: usize = 12;

/// Compatible feature: the superblock checksum is set.
pub const COMPAT_SB_CHKSUM: u32 = 0x1;
/// Compatible feature: extended inodes hold modification times, not change times.
pub const COMPAT_MTIME: u32 = 0x2;
/// Incompatible feature: some inodes are chunk-based.
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// `i_format` bit: the inode is extended.
pub const EXTENDED: u16 = 1;
/// Chunk format: mask of log2(chunk size / block size).
pub const CHUNK_BITS_MASK: u16 = 0x1f;
/// Chunk format: the map has 8-byte indexes rather than 4-byte block addresses.
pub const CHUNK_INDEXES: u16 = 0x20;

/// File type bits of `i_mode`.
pub const S_IFMT: u16 = 0o170_000;
/// Socket.
pub const S_IFSOCK: u16 = 0o140_000;
/// Symbolic link.
pub const S_IFLNK: u16 = 0o120_000;
/// Regular file.
pub const S_IFREG: u16 = 0o100_000;
/// Block device.
pub const S_IFBLK: u16 = 0o060_000;
/// Directory.
pub const S_IFDIR: u16 = 0o040_000;
/// Character device.
pub const S_IFCHR: u16 = 0o020_000;
/// FIFO.
pub const S_IFIFO: u16 = 0o010_000;

/// How an inode's data is laid out (`i_format` bits 1 to 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Layout {
    /// All data in consecutive blocks.
    FlatPlain = 0,
    /// Whole blocks as in `FlatPlain`, the rest behind the inode and its attributes.
    FlatInline = 2,
    /// A map of equal chunks behind the inode and its attributes.
    ChunkBased = 4,
}

impl Layout {
    /// From `i_format`; `None` for compressed or unknown layouts.
    pub fn from_format(format: u16) -> Option<Self> {
        match format >> 1 & 7 {
            0 => Some(Self::FlatPlain),
            2 => Some(Self::FlatInline),
            4 => Some(Self::ChunkBased),
            _ => None,
        }
    }
}

/// The fields of the superblock that are not fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SuperBlock {
    /// CRC-32C as stored; see [`superblock_checksum`].
    pub checksum: u32,
    /// `COMPAT_*` bits.
    pub feature_compat: u32,
    /// `INCOMPAT_*` bits.
    pub feature_incompat: u32,
    /// log2 of the block size.
    pub block_bits: u8,
    /// Inode number of the root directory.
    pub root_nid: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Time used by compact inodes, seconds since 1970.
    pub build_time: u64,
    /// Nanoseconds of `build_time`.
    pub build_time_nsec: u32,
    /// Size of the file system in blocks.
    pub blocks: u32,
    /// First block of the inode area.
    pub meta_blkaddr: u32,
    /// First block of the shared attribute area.
    pub xattr_blkaddr: u32,
    /// Volume UUID.
    pub uuid: [u8; 16],
    /// Volume name, NUL-padded (at most 15 bytes, the kernel wants a NUL).
    pub volume_name: [u8; 16],
    /// Additional devices; this crate writes none.
    pub extra_devices: u16,
}

impl SuperBlock {
    /// The bytes on disk.
    pub fn encode(&self) -> [u8; SUPER_SIZE] {
        let mut b = [0; SUPER_SIZE];
        put(&mut b, 0, SUPER_MAGIC.to_le_bytes());
        put(&mut b, 4, self.checksum.to_le_bytes());
        put(&mut b, 8, self.feature_compat.to_le_bytes());
        b[12] = self.block_bits;
        put(&mut b, 14, self.root_nid.to_le_bytes());
        put(&mut b, 16, self.inodes.to_le_bytes());
        put(&mut b, 24, self.build_time.to_le_bytes());
        put(&mut b, 32, self.build_time_nsec.to_le_bytes());
        put(&mut b, 36, self.blocks.to_le_bytes());
        put(&mut b, 40, self.meta_blkaddr.to_le_bytes());
        put(&mut b, 44, self.xattr_blkaddr.to_le_bytes());
        put(&mut b, 48, self.uuid);
        put(&mut b, 64, self.volume_name);
        put(&mut b, 80, self.feature_incompat.to_le_bytes());
        put(&mut b, 86, self.extra_devices.to_le_bytes());
        b
    }

    /// Reads a superblock; `None` if the magic is wrong. Nothing else is checked.
    pub fn decode(b: &[u8; SUPER_SIZE]) -> Option<Self> {
        (u32_at(b, 0) == SUPER_MAGIC).then(|| Self {
            checksum: u32_at(b, 4),
            feature_compat: u32_at(b, 8),
            block_bits: b[12],
            root_nid: u16_at(b, 14),
            inodes: u64_at(b, 16),
            build_time: u64_at(b, 24),
            build_time_nsec: u32_at(b, 32),
            blocks: u32_at(b, 36),
            meta_blkaddr: u32_at(b, 40),
            xattr_blkaddr: u32_at(b, 44),
            uuid: get(b, 48),
            volume_name: get(b, 64),
            feature_incompat: u32_at(b, 80),
            extra_devices: u16_at(b, 86),
        })
    }
}

/// The checksum the kernel expects (`erofs_superblock_csum_verify`): CRC-32C, no final inversion, over the block that
/// starts at the superblock, its checksum field zero. `block` is that block as it will be on disk: for block sizes over
/// 1024 bytes it is what follows the first 1024 bytes of block 0.
pub fn superblock_checksum(block: &[u8]) -> u32 {
    let crc = crc32c(!0, &block[..4.min(block.len())]);
    let crc = crc32c(crc, &[0; 4]);
    crc32c(crc, block.get(8..).unwrap_or_default())
}

/// CRC-32C (Castagnoli, reflected) continuing from `crc`, without inversions. Meant for a few hundred bytes.
pub fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

/// One inode, whatever its on-disk size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Data layout.
    pub layout: Layout,
    /// File type and permission bits.
    pub mode: u16,
    /// Attribute area in units of 4 bytes: 0, or 1 for the header plus the rest. See [`xattr_icount`].
    pub xattr_icount: u16,
    /// Bytes of data.
    pub size: u64,
    /// First data block, encoded device number ([`encode_device`]), or chunk format.
    pub union: u32,
    /// 32-bit inode number for old `stat`.
    pub ino: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970; negative before (the kernel reads the 64 bits as signed).
    pub mtime: i64,
    /// Nanoseconds of `mtime`, below 10⁹.
    pub mtime_nsec: u32,
    /// Number of names.
    pub nlink: u32,
}

impl Inode {
    /// The bytes of an extended inode.
    pub fn encode(&self) -> [u8; INODE_SIZE] {
        let mut b = [0; INODE_SIZE];
        put(&mut b, 0, (EXTENDED | (self.layout as u16) << 1).to_le_bytes());
        put(&mut b, 2, self.xattr_icount.to_le_bytes());
        put(&mut b, 4, self.mode.to_le_bytes());
        put(&mut b, 8, self.size.to_le_bytes());
        put(&mut b, 16, self.union.to_le_bytes());
        put(&mut b, 20, self.ino.to_le_bytes());
        put(&mut b, 24, self.uid.to_le_bytes());
        put(&mut b, 28, self.gid.to_le_bytes());
        put(&mut b, 32, self.mtime.to_le_bytes());
        put(&mut b, 40, self.mtime_nsec.to_le_bytes());
        put(&mut b, 44, self.nlink.to_le_bytes());
        b
    }

    /// Bytes of the inode whose first two bytes are `format`.
    pub fn size_on_disk(format: u16) -> usize {
        if format & EXTENDED != 0 { INODE_SIZE } else { COMPACT_INODE_SIZE }
    }

    /// Reads an extended or compact inode from the start of `b`; `None` if `b` is too short or the layout is not one of
    /// [`Layout`]. A compact inode has no time of its own: pass the superblock's as `(seconds, nanoseconds)`.
    pub fn decode(b: &[u8], build_time: (i64, u32)) -> Option<Self> {
        let format = u16::from_le_bytes(*b.first_chunk()?);
        let layout = Layout::from_format(format)?;
        let common = |size, uid, gid, (mtime, mtime_nsec), nlink| Self {
            layout,
            mode: u16_at(b, 4),
            xattr_icount: u16_at(b, 2),
            size,
            union: u32_at(b, 16),
            ino: u32_at(b, 20),
            uid,
            gid,
            mtime,
            mtime_nsec,
            nlink,
        };
        if format & EXTENDED != 0 {
            let b: &[u8; INODE_SIZE] = b.first_chunk()?;
            let time = (i64::from_le_bytes(get(b, 32)), u32_at(b, 40));
            return Some(common(u64_at(b, 8), u32_at(b, 24), u32_at(b, 28), time, u32_at(b, 44)));
        }
        let b: &[u8; COMPACT_INODE_SIZE] = b.first_chunk()?;
        let (size, nlink) = (u32_at(b, 8).into(), u16_at(b, 6).into());
        Some(common(size, u16_at(b, 24).into(), u16_at(b, 26).into(), build_time, nlink))
    }
}

/// Linux's 32-bit form of a device number (`new_encode_dev`); `None` if it does not fit 12 and 20 bits.
pub fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Major and minor of an encoded device number.
pub fn decode_device(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}

/// One name in a directory block: `DIRENT_SIZE` bytes at the block's start, the names behind the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent {
    /// Inode number.
    pub nid: u64,
    /// Where the name starts, from the start of the block. It ends where the next begins, at a NUL or at the block's end.
    pub name_offset: u16,
    /// See [`file_type`].
    pub file_type: u8,
}

impl Dirent {
    /// The bytes on disk.
    pub fn encode(&self) -> [u8; DIRENT_SIZE] {
        let mut b = [0; DIRENT_SIZE];
        put(&mut b, 0, self.nid.to_le_bytes());
        put(&mut b, 8, self.name_offset.to_le_bytes());
        b[10] = self.file_type;
        b
    }

    /// Reads one entry.
    pub fn decode(b: &[u8; DIRENT_SIZE]) -> Self {
        Self { nid: u64_at(b, 0), name_offset: u16_at(b, 8), file_type: b[10] }
    }
}

/// The directory entry type for an `i_mode` (`FT_*` in the kernel's `fs_types.h`).
pub fn file_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// Attribute name prefixes and the index stored for each; an exact match for the two ACLs.
const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Splits an attribute name into EROFS' index and the rest; `None` if EROFS has no index for it or nothing remains.
pub fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

/// The prefix an index stands for.
pub fn xattr_prefix(index: u8) -> Option<&'static [u8]> {
    XATTR_PREFIXES.iter().find(|(known, _)| *known == index).map(|(_, prefix)| *prefix)
}

/// Bytes an attribute takes: a 4-byte head, the name's rest and the value, rounded up to 4.
pub fn xattr_entry_size(name_rest: usize, value: usize) -> usize {
    (4 + name_rest + value).next_multiple_of(4)
}

/// `i_xattr_icount` for attributes of `bytes` in all, header included (a multiple of 4); `None` if too many.
pub fn xattr_icount(bytes: usize) -> Option<u16> {
    if bytes == 0 { Some(0) } else { u16::try_from((bytes - XATTR_HEADER_SIZE) / 4 + 1).ok() }
}

/// Bytes of the attribute area for an `i_xattr_icount`.
pub fn xattr_area_size(icount: u16) -> usize {
    if icount == 0 { 0 } else { XATTR_HEADER_SIZE + (usize::from(icount) - 1) * 4 }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn superblock_round_trips() {
        let sb = SuperBlock {
            checksum: 1,
            feature_compat: 3,
            feature_incompat: 4,
            block_bits: 9,
            root_nid: 2,
            inodes: 3,
            build_time: 4,
            build_time_nsec: 5,
            blocks: 6,
            meta_blkaddr: 7,
            xattr_blkaddr: 8,
            uuid: [9; 16],
            volume_name: *b"cloister\0\0\0\0\0\0\0\0",
            extra_devices: 0,
        };
        assert_eq!(SuperBlock::decode(&sb.encode()), Some(sb));
        assert_eq!(SuperBlock::decode(&[0; SUPER_SIZE]), None);
    }

    #[test]
    fn inode_round_trips_and_short_input_is_refused() {
        let inode = Inode {
            layout: Layout::ChunkBased,
            mode: S_IFREG | 0o4755,
            xattr_icount: 7,
            size: 1 << 40,
            union: 3,
            ino: 11,
            uid: 100_000,
            gid: 4_000_000_000,
            mtime: -5,
            mtime_nsec: 999_999_999,
            nlink: 70_000,
        };
        let bytes = inode.encode();
        assert_eq!(Inode::decode(&bytes, (0, 0)), Some(inode));
        for cut in 0..INODE_SIZE {
            assert_eq!(Inode::decode(&bytes[..cut], (0, 0)), None);
        }
    }

    #[test]
    fn device_numbers_follow_linux() {
        assert_eq!(encode_device(8, 1), Some(0x801));
        for (major, minor) in [(0, 0), (4095, 1_048_575), (259, 65_536), (1, 255), (1, 256)] {
            assert_eq!(encode_device(major, minor).map(decode_device), Some((major, minor)));
        }
        assert_eq!(encode_device(4096, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
    }

    #[test]
    fn attribute_names_split_only_where_the_kernel_can_read_them() {
        assert_eq!(split_xattr_name(b"user.a.b"), Some((1, &b"a.b"[..])));
        assert_eq!(split_xattr_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        for name in
            [&b"user."[..], b"user", b"", b"system.posix_acl_accessx", b"com.apple.x", b"system.nfs4_acl"]
        {
            assert_eq!(split_xattr_name(name), None);
        }
        assert_eq!(xattr_area_size(xattr_icount(12 + 8).unwrap_or(0)), 20);
        assert_eq!(xattr_icount(12 + 65534 * 4 + 4), None);
    }
}
