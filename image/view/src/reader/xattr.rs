//! Extended attributes: those behind the inode and those shared between inodes.

use cloister_layer::erofs::format::{XATTR_HEADER_SIZE, xattr_area_size, xattr_entry_size, xattr_prefix};

use super::{Image, Inode};
use crate::error::Result;

const ENTRY_HEAD: usize = 4;

/// Full name and value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// With prefix, such as `security.capability`.
    pub name: Vec<u8>,
    /// As `getxattr` returns it.
    pub value: Vec<u8>,
}

impl Image {
    /// All attributes of `inode`, sorted by name.
    ///
    /// # Errors
    /// When the attribute area is damaged, names an attribute twice or has an unknown name prefix.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        if inode.raw.xattr_icount == 0 {
            return Ok(found);
        }
        let mut area = vec![0; xattr_area_size(inode.raw.xattr_icount)];
        self.read_exact_of(inode.nid, inode.xattrs, &mut area)?;
        let shared = usize::from(area[4]);
        let Some(mut own) = area.get(XATTR_HEADER_SIZE + 4 * shared..) else {
            return Err(self.damaged(inode.nid, "its list of shared attributes is cut short"));
        };
        while !own.is_empty() {
            let Some((xattr, size)) = self.parse(inode, own)? else {
                return Err(self.damaged(inode.nid, "an attribute is cut short"));
            };
            found.push(xattr);
            own = own.get(size..).unwrap_or_default();
        }
        for id in area[XATTR_HEADER_SIZE..XATTR_HEADER_SIZE + 4 * shared].chunks_exact(4) {
            let id = id.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            found.push(self.shared_xattr(inode, id)?);
        }
        found.sort();
        if found.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(self.damaged(inode.nid, "it has an attribute twice"));
        }
        Ok(found)
    }

    fn shared_xattr(&self, inode: &Inode, id: u64) -> Result<Xattr> {
        let at = (u64::from(self.sb.xattr_blkaddr) << self.sb.block_bits) + 4 * id;
        let mut head = [0; ENTRY_HEAD];
        self.read_exact_of(inode.nid, at, &mut head)?;
        let length = ENTRY_HEAD + usize::from(head[0]) + usize::from(u16::from_le_bytes([head[2], head[3]]));
        let mut bytes = vec![0; length];
        self.read_exact_of(inode.nid, at, &mut bytes)?;
        match self.parse(inode, &bytes)? {
            Some((xattr, _)) => Ok(xattr),
            None => Err(self.damaged(inode.nid, "a shared attribute is cut short")),
        }
    }

    /// The entry at the start of `bytes` and the room it takes; `None` if cut short.
    fn parse(&self, inode: &Inode, bytes: &[u8]) -> Result<Option<(Xattr, usize)>> {
        let Some(&[name_len, index, size_low, size_high]) = bytes.first_chunk() else { return Ok(None) };
        let name_len = usize::from(name_len);
        let size = usize::from(u16::from_le_bytes([size_low, size_high]));
        let rest = &bytes[ENTRY_HEAD..];
        let (Some(name), Some(value)) = (rest.get(..name_len), rest.get(name_len..name_len + size)) else {
            return Ok(None);
        };
        let Some(prefix) = xattr_prefix(index) else {
            let what = format!("the attribute name prefix {index}");
            return Err(self.unsupported(super::place(inode.nid), what));
        };
        if prefix.ends_with(b".") == name.is_empty() || name.contains(&0) {
            return Err(self.damaged(inode.nid, "an attribute has no proper name"));
        }
        let xattr = Xattr { name: [prefix, name].concat(), value: value.to_vec() };
        Ok(Some((xattr, xattr_entry_size(name_len, size))))
    }
}
