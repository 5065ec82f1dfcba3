//! A tar writer that can also write what no sane tar has.

use std::fmt::Write;

/// Header fields; the rest comes from the methods of [`Maker`].
#[derive(Clone)]
pub struct Fields {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
}

pub const PLAIN: Fields = Fields { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 };

#[derive(Default, Clone)]
pub struct Maker {
    pub bytes: Vec<u8>,
    fields: Option<Fields>,
    pax: Vec<u8>,
}

impl Maker {
    pub fn new() -> Self {
        Self::default()
    }

    /// Fields of the next entry.
    pub fn with(mut self, fields: Fields) -> Self {
        self.fields = Some(fields);
        self
    }

    /// A PAX record for the next entry.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.extend(record(key, value));
        self
    }

    pub fn file(self, name: &[u8], data: &[u8]) -> Self {
        self.entry(b'0', name, b"", data.len() as u64, data, (0, 0))
    }

    pub fn dir(self, name: &[u8]) -> Self {
        self.entry(b'5', name, b"", 0, b"", (0, 0))
    }

    pub fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.entry(b'2', name, target, 0, b"", (0, 0))
    }

    pub fn hardlink(self, name: &[u8], target: &[u8]) -> Self {
        self.entry(b'1', name, target, 0, b"", (0, 0))
    }

    pub fn node(self, kind: u8, name: &[u8], major: u32, minor: u32) -> Self {
        self.entry(kind, name, b"", 0, b"", (major, minor))
    }

    /// An entry with everything chosen. Long names and links become PAX records.
    pub fn entry(
        mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        size: u64,
        data: &[u8],
        dev: (u32, u32),
    ) -> Self {
        if name.len() > 100 {
            self = self.pax("path", name);
        }
        if link.len() > 100 {
            self = self.pax("linkpath", link);
        }
        if !self.pax.is_empty() {
            let pax = std::mem::take(&mut self.pax);
            let header = header(b'x', b"pax", b"", pax.len() as u64, &PLAIN, (0, 0));
            self = self.raw(&header).raw_padded(&pax);
        }
        let fields = self.fields.take().unwrap_or(PLAIN);
        let header =
            header(kind, &name[..name.len().min(100)], &link[..link.len().min(100)], size, &fields, dev);
        self.raw(&header).raw_padded(data)
    }

    pub fn global(self, records: &[u8]) -> Self {
        let header = header(b'g', b"global", b"", records.len() as u64, &PLAIN, (0, 0));
        self.raw(&header).raw_padded(records)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn raw_padded(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The tar with its end marker.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// A PAX record with the right length.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let digits = (1..).find(|digits| (body + digits).to_string().len() == *digits).unwrap();
    [format!("{} {key}=", body + digits).as_bytes(), value, b"\n"].concat()
}

/// A ustar header.
pub fn header(kind: u8, name: &[u8], link: &[u8], size: u64, fields: &Fields, dev: (u32, u32)) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    number(&mut block[100..108], i64::from(fields.mode));
    number(&mut block[108..116], fields.uid.into());
    number(&mut block[116..124], fields.gid.into());
    number(&mut block[124..136], size.cast_signed());
    number(&mut block[136..148], fields.mtime);
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    number(&mut block[329..337], dev.0.into());
    number(&mut block[337..345], dev.1.into());
    seal(&mut block);
    block
}

/// Sets the checksum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal where it fits, base-256 otherwise.
fn number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    let mut text = String::new();
    if value >= 0 {
        write!(text, "{value:0digits$o}\0").unwrap();
    }
    if value >= 0 && text.len() == field.len() {
        field.copy_from_slice(text.as_bytes());
        return;
    }
    let bytes = i128::from(value).to_be_bytes();
    field.copy_from_slice(&bytes[16 - field.len()..]);
    field[0] = field[0] & 0x7f | 0x80 | if value < 0 { 0x40 } else { 0 };
}
