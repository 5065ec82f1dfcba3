//! A tar archive read once, front to back, from a stream that may be hostile or stop at any byte.
//!
//! Formats: POSIX ustar, pax headers (IEEE 1003.1 `pax`) and GNU long names; nothing is extracted.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// Longest pax header or GNU long name, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;
/// How long the other side may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of padding after the archive's end: GNU tar's largest usual record.
const MAX_TRAILER: usize = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a device, anything else.
    Other,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as it stands there.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content that follow.
    pub size: u64,
}

/// The archive.
pub struct Reader<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    /// Most bytes to read.
    limit: u64,
    /// Bytes of the present entry that were not read yet.
    left: u64,
    /// Bytes that fill up its last block.
    padding: u64,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads an archive of at most `limit` bytes.
    pub fn new(from: R, limit: u64) -> Self {
        Self { from, at: 0, limit, left: 0, padding: 0 }
    }

    /// The next entry, when the content of the one before was read; `None` at the archive's end.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        let (mut path, mut size) = (None, None);
        loop {
            self.skip().await?;
            let mut block = [0; BLOCK];
            self.exact(&mut block).await?;
            if block.iter().all(|byte| *byte == 0) {
                return self.trailer().await.map(|()| None);
            }
            let header = tar::Header::from_byte_slice(&block);
            let at = self.at - BLOCK as u64;
            if !sum_is_right(header) {
                return Err(bad(format!("no header at byte {at}: not a tar archive")));
            }
            let stated = header.entry_size().map_err(|error| bad(format!("size at byte {at}: {error}")))?;
            let kind = header.entry_type();
            if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
                let bytes = self.extension(stated).await?;
                if kind.is_gnu_longname() {
                    path = Some(until_nul(&bytes));
                } else if kind.is_pax_local_extensions() {
                    for record in tar::PaxExtensions::new(&bytes) {
                        let record = record.map_err(|_| bad(format!("pax header at byte {at}")))?;
                        match record.key_bytes() {
                            b"path" => path = Some(record.value_bytes().to_vec()),
                            b"size" => {
                                let value = record.value().ok().and_then(|value| value.parse().ok());
                                size = Some(value.ok_or_else(|| bad(format!("pax size at byte {at}")))?);
                            }
                            _ => {}
                        }
                    }
                }
                continue;
            }
            if kind.is_pax_global_extensions() {
                self.extension(stated).await?;
                continue;
            }
            let kind = match kind {
                _ if kind.is_file() || kind == tar::EntryType::Continuous => Kind::File,
                _ if kind.is_dir() => Kind::Folder,
                _ => Kind::Other,
            };
            let size = size.unwrap_or(stated);
            self.expect(size)?;
            let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
            let path = String::from_utf8(path).map_err(|_| bad(format!("name at byte {at}: not UTF-8")))?;
            return Ok(Some(Entry { path, kind, size }));
        }
    }

    /// Replaces `buffer` by the next bytes of the entry, at most `most`; by none at its end.
    pub async fn piece(&mut self, buffer: &mut Vec<u8>, most: usize) -> Result<()> {
        let n = usize::try_from(self.left).map_or(most, |left| left.min(most));
        buffer.resize(n, 0);
        self.exact(buffer).await?;
        self.left -= n as u64;
        Ok(())
    }

    /// The content of a small entry.
    pub async fn content(&mut self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        if entry.size > limit {
            return Err(bad(format!("{}: {} bytes, more than {limit}", short(&entry.path), entry.size)));
        }
        let mut bytes = Vec::new();
        self.piece(&mut bytes, limit as usize).await?;
        Ok(bytes)
    }

    /// The content of a header about the next header.
    async fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad(format!("a name or header of {size} bytes, more than {MAX_EXTENSION}")));
        }
        self.expect(size)?;
        let mut bytes = Vec::new();
        self.piece(&mut bytes, MAX_EXTENSION as usize).await?;
        Ok(bytes)
    }

    /// Notes that an entry's content follows.
    fn expect(&mut self, size: u64) -> Result<()> {
        let end = self.at.checked_add(size).filter(|end| *end <= self.limit);
        end.ok_or_else(|| bad(format!("larger than the limit of {} bytes", self.limit)))?;
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Reads over what nobody wanted of the entry before.
    async fn skip(&mut self) -> Result<()> {
        let mut buffer = Vec::new();
        while self.left > 0 {
            self.piece(&mut buffer, 64 << 10).await?;
        }
        let padding = std::mem::take(&mut self.padding) as usize;
        self.exact(&mut [0; BLOCK][..padding]).await
    }

    /// Reads to the stream's end, so that nobody who writes it is left with a broken pipe.
    async fn trailer(&mut self) -> Result<()> {
        let mut left = MAX_TRAILER;
        let mut buffer = vec![0; 8 << 10];
        loop {
            let n = self.some(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            left = left.checked_sub(n).ok_or_else(|| bad("it goes on after its end".to_owned()))?;
        }
    }

    async fn exact(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let n = self.some(buffer).await?;
            if n == 0 {
                return Err(bad(format!("truncated: it ends at byte {}", self.at)));
            }
            buffer = &mut buffer[n..];
        }
        Ok(())
    }

    async fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = tokio::time::timeout(PATIENCE, self.from.read(buffer)).await;
        let n = read
            .map_err(|_| bad(format!("nothing arrived for {} s", PATIENCE.as_secs())))?
            .map_err(|error| bad(format!("lost at byte {}: {error}", self.at)))?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The archive is at fault.
pub fn bad(why: String) -> Error {
    Error::Invalid(format!("image archive: {why}"))
}

/// A hostile name, short enough for one line.
pub fn short(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Checks the header's own sum, in which its own field counts as blanks.
fn sum_is_right(header: &tar::Header) -> bool {
    let bytes = header.as_bytes().iter().enumerate();
    let sum: u32 = bytes.map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, name.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8], limit: u64) -> Result<Vec<(String, Vec<u8>)>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut reader = Reader::new(bytes, limit);
            let mut found = Vec::new();
            while let Some(entry) = reader.next().await? {
                let content = reader.content(&entry, 1000).await?;
                found.push((entry.path, content));
            }
            Ok(found)
        })
    }

    #[test]
    fn names_short_and_long_come_with_their_content() {
        let long = "d/".repeat(150) + "file";
        let found = read(&archive(&["a", &long]), 1 << 20).unwrap();
        assert_eq!(found, [("a".into(), b"a".to_vec()), (long.clone(), long.into_bytes())]);
    }

    #[test]
    fn an_archive_cut_at_any_byte_is_refused() {
        let bytes = archive(&["a", "b"]);
        for end in [0, 1, 511, 512, 513, 1024, 1025, 2047, 2048] {
            let error = read(&bytes[..end], 1 << 20).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{end}: {error}");
        }
        assert!(read(&[1; 2048], 1 << 20).unwrap_err().to_string().contains("not a tar"));
    }

    #[test]
    fn sizes_and_trailers_are_bounded() {
        let bytes = archive(&["a"]);
        assert!(read(&bytes, 512).unwrap_err().to_string().contains("limit"));
        let endless = [bytes, vec![0; MAX_TRAILER + BLOCK]].concat();
        assert!(read(&endless, 1 << 30).unwrap_err().to_string().contains("goes on"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000),
            at in 0usize..2000,
            byte in proptest::num::u8::ANY,
        ) {
            let mut good = archive(&["a", &"x".repeat(150)]);
            if let Some(slot) = good.get_mut(at) { *slot = byte; }
            let _ = read(&good, 1 << 20);
            let _ = read(&bytes, 1 << 20);
        }
    }
}
