//! One tar entry's headers: ustar where the value fits, PAX records where it does not.
//! Source: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended Header".

use tar::{EntryType, Header};

use crate::reader::{Meta, Xattr};

const BLOCK: usize = 512;
/// Largest owner and largest size or time that the octal fields hold.
const MAX_ID: u32 = 0o7_777_777;
const MAX_NUMBER: u64 = 0o77_777_777_777;
const NAME_FIELD: usize = 100;

/// What an entry says about itself.
pub(super) struct Entry<'a> {
    /// Path, with a slash at the end for directories.
    pub path: &'a [u8],
    /// Kind of entry.
    pub kind: EntryType,
    /// Owner, mode, time, device.
    pub meta: Meta,
    /// Extended attributes.
    pub xattrs: &'a [Xattr],
    /// Target of a symlink, or path of the first name of a hard link.
    pub link: &'a [u8],
    /// Bytes that follow in the archive.
    pub stored: u64,
    /// Bytes of the file, if it is stored as a sparse file.
    pub sparse: Option<u64>,
}

impl Entry<'_> {
    /// All header blocks, PAX ones included.
    pub fn encode(&self) -> Vec<u8> {
        let records = self.records();
        let mut out = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            let mut pax = Header::new_ustar();
            put_name(&mut pax, b"PaxHeaders/entry");
            pax.set_mode(0o644);
            pax.set_uid(0);
            pax.set_gid(0);
            pax.set_mtime(0);
            pax.set_size(records.len() as u64);
            pax.set_entry_type(EntryType::XHeader);
            pax.set_cksum();
            out.extend_from_slice(pax.as_bytes());
            out.extend_from_slice(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend_from_slice(self.ustar().as_bytes());
        out
    }

    fn ustar(&self) -> Header {
        let meta = &self.meta;
        let mut h = Header::new_ustar();
        if self.sparse.is_some() {
            // Readers that do not know sparse files make an odd file out of the way instead of a wrong one.
            put_name(&mut h, b"GNUSparseFile.0/entry");
        } else {
            put_name(&mut h, self.path);
        }
        put(&mut h.as_old_mut().linkname, self.link);
        h.set_mode(meta.mode & 0o7777);
        h.set_uid(if meta.uid > MAX_ID { 0 } else { meta.uid.into() });
        h.set_gid(if meta.gid > MAX_ID { 0 } else { meta.gid.into() });
        h.set_mtime(u64::try_from(meta.mtime).ok().filter(|t| *t <= MAX_NUMBER).unwrap_or(0));
        h.set_size(if self.stored > MAX_NUMBER { 0 } else { self.stored });
        h.set_entry_type(self.kind);
        if let (Some(ustar), EntryType::Block | EntryType::Char) = (h.as_ustar_mut(), self.kind) {
            ustar.set_device_major(meta.rdev.0);
            ustar.set_device_minor(meta.rdev.1);
        }
        h.set_cksum();
        h
    }

    fn records(&self) -> Vec<u8> {
        let meta = &self.meta;
        let mut out = Vec::new();
        if let Some(size) = self.sparse {
            record(&mut out, b"GNU.sparse.major", b"1");
            record(&mut out, b"GNU.sparse.minor", b"0");
            record(&mut out, b"GNU.sparse.name", self.path);
            record(&mut out, b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else if self.path.len() > NAME_FIELD {
            record(&mut out, b"path", self.path);
        }
        if self.link.len() > NAME_FIELD {
            record(&mut out, b"linkpath", self.link);
        }
        if self.stored > MAX_NUMBER {
            record(&mut out, b"size", self.stored.to_string().as_bytes());
        }
        if meta.uid > MAX_ID {
            record(&mut out, b"uid", meta.uid.to_string().as_bytes());
        }
        if meta.gid > MAX_ID {
            record(&mut out, b"gid", meta.gid.to_string().as_bytes());
        }
        if meta.mtime_nsec != 0 || !u64::try_from(meta.mtime).is_ok_and(|t| t <= MAX_NUMBER) {
            record(&mut out, b"mtime", time(meta.mtime, meta.mtime_nsec).as_bytes());
        }
        for xattr in self.xattrs {
            record(&mut out, &[b"SCHILY.xattr.", &*keyword(&xattr.name)].concat(), &xattr.value);
        }
        out
    }
}

/// `length key=value\n`, the length counting itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A key cannot hold `=`: GNU tar writes it, and the escape sign itself, as hexadecimal.
fn keyword(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'=' => out.extend_from_slice(b"%3D"),
            b'%' => out.extend_from_slice(b"%25"),
            other => out.push(*other),
        }
    }
    out
}

/// Decimal seconds. Nanoseconds count upwards, so a time before 1970 borrows from its seconds.
fn time(seconds: i64, nanos: u32) -> String {
    let digits = |nanos: u32| format!("{nanos:09}").trim_end_matches('0').to_owned();
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (..0, _) => format!("-{}.{}", (seconds + 1).unsigned_abs(), digits(1_000_000_000 - nanos)),
        _ => format!("{seconds}.{}", digits(nanos)),
    }
}

fn put_name(header: &mut Header, path: &[u8]) {
    put(&mut header.as_old_mut().name, path);
}

/// Cut to the field; what is cut stands in a PAX record.
fn put(field: &mut [u8; NAME_FIELD], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_length_counts_its_own_digits() {
        for value in [0, 1, 90, 91, 92, 93, 990, 991, 992, 993] {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; value]);
            let space = out.iter().position(|b| *b == b' ').unwrap();
            assert_eq!(std::str::from_utf8(&out[..space]).unwrap().parse::<usize>().unwrap(), out.len());
        }
    }

    #[test]
    fn times_before_1970_are_negative_decimals() {
        assert_eq!(time(-1, 123_456_789), "-0.876543211");
        assert_eq!(time(-2, 500_000_000), "-1.5");
        assert_eq!(time(-2, 0), "-2");
        assert_eq!(time(1, 5), "1.000000005");
        assert_eq!(time(i64::MIN, 1), "-9223372036854775807.999999999");
    }
}
