//! PAX extended headers: records `LENGTH KEY=VALUE\n`, where the length counts the whole record.

use super::number;
use crate::error::Reason;

/// What PAX records may override, those of one header or, merged, of all that apply to an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes in libarchive's coding; they count only where no attribute of the same name came the other way.
    pub libarchive_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: SparseRecords,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub name: Option<Vec<u8>>,
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub real_size: Option<u64>,
    pub numblocks: Option<u64>,
    pub segments: Vec<(u64, u64)>,
    pending_offset: Option<u64>,
    has_map: bool,
}

impl SparseRecords {
    pub fn present(&self) -> bool {
        self.major.is_some() || self.numblocks.is_some() || self.has_map || !self.segments.is_empty()
    }
}

impl Records {
    /// Applies the records of one header. An empty value removes what was there, as POSIX has it.
    pub fn apply(&mut self, mut data: &[u8], sparse_limit: usize) -> Result<(), Reason> {
        while !data.is_empty() {
            let space = data.iter().take(20).position(|b| *b == b' ');
            let space = space.ok_or(Reason::Pax("a record has no length"))?;
            let len = number::decimal(&data[..space], "a PAX record's length")?;
            let len = usize::try_from(len).ok().filter(|len| *len > space + 1 && *len <= data.len());
            let len = len.ok_or(Reason::Pax("a record's length is wrong"))?;
            let (record, rest) = data.split_at(len);
            let body = record[space + 1..].strip_suffix(b"\n");
            let body = body.ok_or(Reason::Pax("a record does not end in a newline"))?;
            let equals = body.iter().position(|b| *b == b'=');
            let equals = equals.ok_or(Reason::Pax("a record has no \"=\""))?;
            self.set(&body[..equals], &body[equals + 1..], sparse_limit)?;
            data = rest;
        }
        if self.sparse.pending_offset.is_some() {
            return Err(Reason::Sparse("an offset has no length"));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], sparse_limit: usize) -> Result<(), Reason> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = |name| if value.is_empty() { Ok(None) } else { number::decimal(value, name).map(Some) };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = url_decode(name).ok_or(Reason::Pax("an attribute's name is not URL-encoded"))?;
            let value = base64_decode(value).ok_or(Reason::Pax("an attribute's value is not base64"))?;
            self.libarchive_xattrs.push((name, value));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.set(name, value, sparse_limit);
        }
        match key {
            b"path" => self.path = checked_text(text())?,
            b"linkpath" => self.link = checked_text(text())?,
            b"size" => self.size = number("the PAX size")?,
            b"uid" => self.uid = number("the PAX user ID")?,
            b"gid" => self.gid = number("the PAX group ID")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(number::time(value, "the PAX modification time")?),
            // atime, ctime, uname, gname, comment, hdrcharset and vendor records change nothing we keep: names are
            // bytes here, so hdrcharset=BINARY is how every header is read.
            _ => {}
        }
        Ok(())
    }

    /// All attributes, with those in libarchive's coding first: of equal names the last counts.
    pub fn take_xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = std::mem::take(&mut self.libarchive_xattrs);
        all.append(&mut self.xattrs);
        all
    }
}

impl SparseRecords {
    fn set(&mut self, name: &[u8], value: &[u8], limit: usize) -> Result<(), Reason> {
        let number = || number::decimal(value, "a sparse record");
        match name {
            b"name" => self.name = checked_text(Some(value.to_vec()))?,
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"numblocks" => self.numblocks = Some(number()?),
            b"offset" => {
                let before = self.pending_offset.replace(number()?);
                before.map_or(Ok(()), |_| Err(Reason::Sparse("two offsets in a row")))?;
            }
            b"numbytes" => {
                let offset = self.pending_offset.take().ok_or(Reason::Sparse("a length without offset"))?;
                self.push(offset, number()?, limit)?;
            }
            b"map" => {
                self.has_map = true;
                self.segments.clear();
                let mut numbers = value.split(|b| *b == b',');
                while let Some(offset) = numbers.next().filter(|text| !text.is_empty()) {
                    let len = numbers.next().ok_or(Reason::Sparse("an offset has no length"))?;
                    let (offset, len) =
                        (number::decimal(offset, "the sparse map")?, number::decimal(len, "the sparse map")?);
                    self.push(offset, len, limit)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, len: u64, limit: usize) -> Result<(), Reason> {
        if self.segments.len() >= limit {
            return Err(Reason::Limit { field: "sparse_segments", limit: limit as u64 });
        }
        self.segments.push((offset, len));
        Ok(())
    }
}

fn checked_text(value: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Reason> {
    match value {
        Some(text) if text.contains(&0) => Err(Reason::NulInName),
        other => Ok(other),
    }
}

/// `%XX` decoding; everything else stands for itself.
fn url_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'%' {
            let (high, low) =
                (char::from(*bytes.next()?).to_digit(16)?, char::from(*bytes.next()?).to_digit(16)?);
            out.push((high << 4 | low) as u8);
        } else {
            out.push(*byte);
        }
    }
    Some(out)
}

/// Standard base64, padding optional as libarchive leaves it out.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut end = text.len();
    while end > 0 && text.len() - end < 2 && text[end - 1] == b'=' {
        end -= 1;
    }
    let mut out = Vec::with_capacity(end / 4 * 3 + 2);
    for group in text[..end].chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            bits = bits << 6
                | u32::from(match digit {
                    b'A'..=b'Z' => digit - b'A',
                    b'a'..=b'z' => digit - b'a' + 26,
                    b'0'..=b'9' => digit - b'0' + 52,
                    b'+' => 62,
                    b'/' => 63,
                    _ => return None,
                });
        }
        let bytes = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bits <<= 6 * (4 - group.len());
        out.extend(&bits.to_be_bytes()[1..=bytes]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with the right length in front.
    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let digits = (1..).find(|digits| (body + digits).to_string().len() == *digits).unwrap();
        [format!("{} {key}=", body + digits).as_bytes(), value, b"\n"].concat()
    }

    fn parse(data: &[u8]) -> Result<Records, Reason> {
        let mut records = Records::default();
        records.apply(data, 10).map(|()| records)
    }

    #[test]
    fn values_are_binary_and_the_last_record_wins() {
        let records = parse(
            &[
                record("path", b"x"),
                record("path", b"y"),
                record("SCHILY.xattr.user.a", b"1\0\n2"),
                record("uid", b"100000"),
            ]
            .concat(),
        )
        .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"y"[..]));
        assert_eq!(records.uid, Some(100_000));
        assert_eq!(records.xattrs, [(b"user.a".to_vec(), b"1\0\n2".to_vec())]);
    }

    #[test]
    fn an_empty_value_removes_what_a_global_header_said() {
        let mut records = parse(b"9 path=x\n").unwrap();
        records.apply(b"8 path=\n", 10).unwrap();
        assert_eq!(records, Records::default());
    }

    #[test]
    fn lying_records_are_refused() {
        for bad in [
            &b"path=x\n"[..],
            b"999 path=x\n",
            b"8 path=x\n",
            b"11 path=x\n",
            b"0 path=x\n",
            b"2 \n",
            b"9 pathxx\n",
            b"00000000000000000000000 path=x\n",
            b"-9 path=x\n",
            b"9 path=x",
            &record("size", b"-1"),
            &record("mtime", b"\xff"),
            &record("path", b"a\0b"),
            &record("GNU.sparse.offset", b"1"),
            &record("GNU.sparse.numbytes", b"1"),
            &record("GNU.sparse.map", b"1"),
            &record("LIBARCHIVE.xattr.user.%4", b""),
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded_and_yield() {
        let mut records = parse(&record("LIBARCHIVE.xattr.user.a%3Db", b"AAEC/w")).unwrap();
        assert_eq!(records.take_xattrs(), [(b"user.a=b".to_vec(), vec![0, 1, 2, 255])]);
        let both = [record("SCHILY.xattr.user.a", b"x"), record("LIBARCHIVE.xattr.user.a", b"AAEC")].concat();
        assert_eq!(parse(&both).unwrap().take_xattrs().pop(), Some((b"user.a".to_vec(), b"x".to_vec())));
        assert_eq!(base64_decode(b"QQ=="), Some(b"A".to_vec()));
        assert_eq!(base64_decode(b"QQ"), Some(b"A".to_vec()));
        assert_eq!(base64_decode(b"Q"), None);
        assert_eq!(base64_decode(b"Q*=="), None);
    }
}
