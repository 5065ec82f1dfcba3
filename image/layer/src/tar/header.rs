//! The 512-byte header block.

use super::number::field;
use crate::error::Reason;

pub(super) const BLOCK: usize = 512;

/// Which conventions the fields behind the link name follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header<'a> {
    bytes: &'a [u8; BLOCK],
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum, computed over unsigned bytes or, as old tars did, signed ones.
    pub fn parse(bytes: &'a [u8; BLOCK]) -> Result<Self, Reason> {
        let stored = field(&bytes[148..156], "the checksum").map_err(|_| Reason::Checksum)?;
        let blanked =
            || bytes.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b });
        let unsigned: i64 = blanked().map(i64::from).sum();
        let signed: i64 = blanked().map(|b| i64::from(b.cast_signed())).sum();
        if stored != unsigned && stored != signed {
            return Err(Reason::Checksum);
        }
        let dialect = match &bytes[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            _ if &bytes[257..262] != b"ustar" => Dialect::V7,
            _ if &bytes[508..512] == b"tar\0" => Dialect::Star,
            _ => Dialect::Ustar,
        };
        Ok(Self { bytes, dialect })
    }

    pub fn kind(&self) -> u8 {
        self.bytes[156]
    }

    pub fn is_gnu(&self) -> bool {
        self.dialect == Dialect::Gnu
    }

    /// The name with the prefix of ustar and star in front.
    pub fn path(&self) -> Vec<u8> {
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.bytes[345..500]),
            Dialect::Star => text(&self.bytes[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        let name = text(&self.bytes[..100]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> &'a [u8] {
        text(&self.bytes[157..257])
    }

    /// Permission bits; old tars have the file type above them.
    pub fn mode(&self) -> Result<u16, Reason> {
        Ok((field(&self.bytes[100..108], "the mode")? & 0o7777) as u16)
    }

    pub fn uid(&self) -> Result<i64, Reason> {
        field(&self.bytes[108..116], "the user ID")
    }

    pub fn gid(&self) -> Result<i64, Reason> {
        field(&self.bytes[116..124], "the group ID")
    }

    pub fn size(&self) -> Result<u64, Reason> {
        non_negative(field(&self.bytes[124..136], "the size")?, "the size")
    }

    pub fn mtime(&self) -> Result<i64, Reason> {
        field(&self.bytes[136..148], "the modification time")
    }

    /// Major and minor of a device.
    pub fn device(&self) -> Result<(u32, u32), Reason> {
        if self.dialect == Dialect::V7 {
            return Ok((0, 0));
        }
        let number = |bytes| {
            u32::try_from(field(bytes, "the device number")?).map_err(|_| Reason::Range("the device number"))
        };
        Ok((number(&self.bytes[329..337])?, number(&self.bytes[337..345])?))
    }

    /// Old GNU sparse: the first four segments, whether more blocks of them follow, and the file's size.
    pub fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64), Reason> {
        let size =
            non_negative(field(&self.bytes[483..495], "the sparse file's size")?, "the sparse file's size")?;
        Ok((&self.bytes[386..482], self.bytes[482] != 0, size))
    }
}

/// A segment record of old GNU sparse headers, 12 + 12 bytes; `None` at the end of the list.
pub(super) fn gnu_segment(record: &[u8]) -> Result<Option<(u64, u64)>, Reason> {
    if record[0] == 0 {
        return Ok(None);
    }
    let number = |bytes| non_negative(field(bytes, "a sparse segment")?, "a sparse segment");
    Ok(Some((number(&record[..12])?, number(&record[12..24])?)))
}

fn non_negative(value: i64, name: &'static str) -> Result<u64, Reason> {
    u64::try_from(value).map_err(|_| Reason::Range(name))
}

/// A text field ends at its first NUL.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}
