//! The inode record. Source: `Documentation/filesystems/ext4/inodes.rst` (6.12).

use super::layout::{INODE_SIZE, put16, put32};

/// File type bits of a mode.
pub(crate) const S_IFMT: u32 = 0o170_000;
/// Directory.
pub(crate) const S_IFDIR: u32 = 0o040_000;
/// Regular file.
pub(crate) const S_IFREG: u32 = 0o100_000;
/// Symbolic link.
pub(crate) const S_IFLNK: u32 = 0o120_000;
/// Character device.
pub(crate) const S_IFCHR: u32 = 0o020_000;
/// Block device.
pub(crate) const S_IFBLK: u32 = 0o060_000;
/// FIFO.
pub(crate) const S_IFIFO: u32 = 0o010_000;
/// Socket.
pub(crate) const S_IFSOCK: u32 = 0o140_000;

/// The inode's `i_block` holds an extent tree.
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;
/// Bytes of the in-inode attribute area: what the extra fields leave free.
pub(crate) const INLINE_XATTR_BYTES: usize = (INODE_SIZE - 160) as usize;

/// Everything an inode record says.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    /// Type and permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Names; 1 also means "a directory with more than 65,000".
    pub links: u16,
    /// Modification time: seconds since 1970 (may be negative) and nanoseconds. Used for all four times.
    pub mtime: (i64, u32),
    /// File system blocks held, data and bookkeeping.
    pub blocks: u64,
    /// [`FLAG_EXTENTS`] or 0.
    pub flags: u32,
    /// Extent tree root, device number or short symlink target.
    pub block: [u8; 60],
    /// Block of further attributes, or 0.
    pub xattr_block: u32,
    /// In-inode attributes; all zeros for none.
    pub inline_xattrs: [u8; INLINE_XATTR_BYTES],
}

/// Earliest and latest second the 34 time bits hold.
pub(crate) const TIME_RANGE: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

impl Inode {
    /// The 256 bytes of the record. Times must lie in [`TIME_RANGE`].
    pub fn encode(&self) -> [u8; INODE_SIZE as usize] {
        let mut b = [0; INODE_SIZE as usize];
        // 512-byte units; `huge_file` gives the count 48 bits.
        let units = self.blocks * 8;
        let (seconds, extra) = time_fields(self.mtime);
        put16(&mut b, 0x0, self.mode);
        put16(&mut b, 0x2, self.uid as u16);
        put32(&mut b, 0x4, self.size as u32);
        for at in [0x8, 0xc, 0x10, 0x90] {
            put32(&mut b, at, seconds);
        }
        put16(&mut b, 0x18, self.gid as u16);
        put16(&mut b, 0x1a, self.links);
        put32(&mut b, 0x1c, units as u32);
        put32(&mut b, 0x20, self.flags);
        b[0x28..0x64].copy_from_slice(&self.block);
        put32(&mut b, 0x68, self.xattr_block);
        put32(&mut b, 0x6c, (self.size >> 32) as u32);
        put16(&mut b, 0x74, (units >> 32) as u16);
        put16(&mut b, 0x78, (self.uid >> 16) as u16);
        put16(&mut b, 0x7a, (self.gid >> 16) as u16);
        put16(&mut b, 0x80, 32); // extra bytes in use
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut b, at, extra);
        }
        b[160..].copy_from_slice(&self.inline_xattrs);
        b
    }
}

/// Low 32 bits of the seconds, and the extra field: two epoch bits under thirty bits of nanoseconds.
fn time_fields((seconds, nanos): (i64, u32)) -> (u32, u32) {
    let low = seconds as i32;
    let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
    (low as u32, nanos << 2 | epoch)
}

/// A device number as `i_block` holds it: the 16-bit form where it fits, else the 32-bit form in the second word.
pub(crate) fn device_block(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut block, 0, major << 8 | minor);
    } else {
        put32(&mut block, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    block
}

/// The type byte of a directory entry.
pub(crate) fn dirent_type(mode: u32) -> u8 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_use_the_epoch_bits() {
        assert_eq!(time_fields((-1, 999_999_999)), (0xffff_ffff, 999_999_999 << 2));
        assert_eq!(time_fields((1 << 31, 0)), (0x8000_0000, 1));
        assert_eq!(time_fields((*TIME_RANGE.end(), 5)), (0x7fff_ffff, 5 << 2 | 3));
        assert_eq!(time_fields((*TIME_RANGE.start(), 5)), (0x8000_0000, 5 << 2));
    }

    #[test]
    fn wide_device_numbers_take_the_second_word() {
        assert_eq!(device_block(8, 1)[..8], [1, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device_block(259, 0x12345)[4..8], (0x45 | 259 << 8 | 0x123u32 << 20).to_le_bytes());
    }
}
