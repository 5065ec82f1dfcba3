//! The reader: one pass, a few kilobytes of memory besides the extensions of the current entry.

use std::io::{self, BufRead};

use super::entry::{Entry, EntryKind, SparseMap};
use super::header::{BLOCK, Header, gnu_segment, text};
use super::pax::Records;
use super::sparse::{MapParser, checked};
use crate::error::{Error, Reason};
use crate::limits::Limits;

/// Global headers together may be this fraction of [`Limits::pax_bytes`].
const GLOBAL_SHARE: usize = 64;

/// Reads the entries of a tar. File data is skipped: entries say where it is.
pub struct Reader<'l, R> {
    input: R,
    /// Bytes taken from `input`.
    position: u64,
    /// Bytes of data and padding of the last entry not yet skipped.
    pending: u64,
    /// What global headers said; small, as every entry copies it.
    global: Records,
    global_bytes: usize,
    limits: &'l Limits,
    /// Path of the last entry, for errors.
    last: Vec<u8>,
    ended: bool,
}

/// Extensions collected in front of an entry.
#[derive(Default)]
struct Extensions {
    any: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    local: Option<Vec<u8>>,
}

impl<'l, R: BufRead> Reader<'l, R> {
    /// Reads from the start of a tar.
    pub fn new(input: R, limits: &'l Limits) -> Self {
        Self {
            input,
            position: 0,
            pending: 0,
            global: Records::default(),
            global_bytes: 0,
            limits,
            last: Vec::new(),
            ended: false,
        }
    }

    /// The input, to be asked what it has seen once the end is reached.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, or `None` after the last, when the whole stream has been read.
    ///
    /// # Errors
    /// What is wrong with the tar, or what the input said: an [`io::Error`] that wraps an [`Error`] is unwrapped. Where
    /// the stream is at fault, the last entry is named too.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        let entry = self.next().map_err(|error| error.after(&self.last))?;
        if let Some(Entry { path, .. }) = &entry {
            self.last.clone_from(path);
        }
        Ok(entry)
    }

    fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_pending()?;
        let mut extensions = Extensions::default();
        loop {
            let at = self.position;
            let damaged = |reason| Error::Tar { offset: at, reason };
            let mut block = [0; BLOCK];
            let got = self.read_block(&mut block)?;
            if got == 0 || block == [0; BLOCK] && got == BLOCK {
                if extensions.any {
                    return Err(damaged(Reason::DanglingExtension));
                }
                if at == 0 && got == 0 {
                    return Err(damaged(Reason::Empty));
                }
                self.ended = true;
                return self.expect_end().map(|()| None);
            }
            if got < BLOCK {
                return Err(damaged(Reason::Truncated("a header")));
            }
            let header = Header::parse(&block).map_err(damaged)?;
            let name = header.path();
            let size = header.size().map_err(|reason| Error::entry(&name, reason))?;
            match header.kind() {
                b'L' | b'K' => {
                    let value = text(&self.read_extension(size, at)?).to_vec();
                    let slot =
                        if header.kind() == b'L' { &mut extensions.path } else { &mut extensions.link };
                    *slot = Some(value);
                    extensions.any = true;
                }
                b'x' | b'X' => {
                    let records = self.read_extension(size, at)?;
                    if extensions.local.is_some() {
                        return Err(damaged(Reason::Pax("two headers for one entry")));
                    }
                    extensions.local = Some(records);
                    extensions.any = true;
                }
                b'g' => {
                    let records = self.read_extension(size, at)?;
                    self.global_bytes += records.len();
                    if self.global_bytes > self.limits.pax_bytes / GLOBAL_SHARE {
                        return Err(self.pax_limit(GLOBAL_SHARE));
                    }
                    self.global.apply(&records, self.limits.sparse_segments).map_err(damaged)?;
                    if self.global.sparse.present() {
                        return Err(damaged(Reason::Pax("a sparse map for all entries")));
                    }
                }
                // A volume label: no file.
                b'V' => {
                    self.pending = padded(size).ok_or_else(|| damaged(Reason::Range("the size")))?;
                    self.skip_pending()?;
                }
                _ => return self.entry(&header, name, size, extensions).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        name: Vec<u8>,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, Error> {
        let mut records = self.global.clone();
        if let Some(local) = &extensions.local {
            let applied = records.apply(local, self.limits.sparse_segments);
            applied.map_err(|reason| Error::entry(&name, reason))?;
        }
        let path = records.path.take().or(extensions.path).unwrap_or(name);
        let wrong = |reason| Error::entry(&path, reason);
        let link = records.link.take().or(extensions.link).unwrap_or_else(|| header.link().to_vec());
        if link.len() > self.limits.path_bytes {
            return Err(wrong(Reason::Limit { field: "path_bytes", limit: self.limits.path_bytes as u64 }));
        }
        let size = records.size.unwrap_or(size);
        let mode = header.mode().map_err(wrong)?;
        let id = |pax: Option<u64>, plain: Result<i64, Reason>, name| {
            let value = match pax {
                Some(value) => u32::try_from(value).ok(),
                None => u32::try_from(plain?).ok(),
            };
            // All ones means "leave as it is" to chown, so no file can have it.
            value.filter(|id| *id != u32::MAX).ok_or(Reason::Range(name))
        };
        let uid = id(records.uid, header.uid(), "the user ID").map_err(wrong)?;
        let gid = id(records.gid, header.gid(), "the group ID").map_err(wrong)?;
        let (mtime, mtime_nsec) = match records.mtime {
            Some(time) => time,
            None => (header.mtime().map_err(wrong)?, 0),
        };
        let xattrs = records.take_xattrs();
        let kind = match header.kind() {
            // Folders of V7 tars are files whose name ends in a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' if records.sparse.present() => {
                EntryKind::Sparse(self.pax_sparse(&mut records, size).map_err(|e| named(&path, e))?)
            }
            0 | b'0' | b'7' => self.file(size).map_err(wrong)?,
            b'S' if header.is_gnu() => {
                EntryKind::Sparse(self.gnu_sparse(header, size).map_err(|e| named(&path, e))?)
            }
            b'1' => EntryKind::Hardlink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = header.device().map_err(wrong)?;
                if header.kind() == b'3' {
                    EntryKind::CharDevice(major, minor)
                } else {
                    EntryKind::BlockDevice(major, minor)
                }
            }
            b'5' => EntryKind::Directory,
            // A folder of an incremental GNU dump: its data lists the names it had.
            b'D' => {
                self.file(size).map_err(wrong)?;
                EntryKind::Directory
            }
            b'6' => EntryKind::Fifo,
            other => return Err(wrong(Reason::Type(other.into()))),
        };
        let path = records.sparse.name.take().unwrap_or(path);
        Ok(Entry { path, kind, mode, uid, gid, mtime, mtime_nsec, xattrs })
    }

    /// Notes that `size` bytes of data follow here.
    fn file(&mut self, size: u64) -> Result<EntryKind, Reason> {
        if size > self.limits.uncompressed_bytes {
            let limit = self.limits.uncompressed_bytes;
            return Err(Reason::Limit { field: "uncompressed_bytes", limit });
        }
        self.pending = padded(size).ok_or(Reason::Range("the size"))?;
        Ok(EntryKind::File { data: self.position, size })
    }

    fn pax_sparse(&mut self, records: &mut Records, size: u64) -> Result<SparseMap, Error> {
        let at = self.position;
        let damaged = |reason| Error::Tar { offset: at, reason };
        let sparse = &mut records.sparse;
        let real = sparse.real_size.ok_or_else(|| damaged(Reason::Sparse("no size recorded")))?;
        let mut stored = size;
        let segments = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => {
                let mut map = MapParser::new(self.limits.sparse_segments);
                let mut block = [0; BLOCK];
                loop {
                    stored = stored
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| damaged(Reason::Sparse("the map is longer than the data")))?;
                    if self.read_block(&mut block)? < BLOCK {
                        return Err(damaged(Reason::Truncated("a sparse map")));
                    }
                    if map.feed(&block).map_err(damaged)? {
                        break map.finish();
                    }
                }
            }
            (None | Some(0), _) => {
                let segments = std::mem::take(&mut sparse.segments);
                if sparse.numblocks.is_some_and(|count| count != segments.len() as u64) {
                    return Err(damaged(Reason::Sparse("the number of segments is wrong")));
                }
                segments
            }
            _ => return Err(damaged(Reason::Sparse("unknown version"))),
        };
        self.file(stored).map_err(damaged)?;
        checked(self.position, real, segments, stored).map_err(damaged)
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, size: u64) -> Result<SparseMap, Error> {
        let at = self.position;
        let damaged = |reason| Error::Tar { offset: at, reason };
        let (first, mut more, real) = header.gnu_sparse().map_err(damaged)?;
        let mut segments = Vec::new();
        let mut block = [0; BLOCK];
        let mut records = first;
        loop {
            for record in records.as_chunks::<24>().0 {
                let Some(segment) = gnu_segment(record).map_err(damaged)? else { break };
                if segments.len() >= self.limits.sparse_segments {
                    let limit = self.limits.sparse_segments as u64;
                    return Err(damaged(Reason::Limit { field: "sparse_segments", limit }));
                }
                segments.push(segment);
            }
            if !more {
                break;
            }
            if self.read_block(&mut block)? < BLOCK {
                return Err(damaged(Reason::Truncated("a sparse map")));
            }
            (records, more) = (&block[..504], block[504] != 0);
        }
        self.file(size).map_err(damaged)?;
        checked(self.position, real, segments, size).map_err(damaged)
    }

    /// The data of an extension header, without padding.
    fn read_extension(&mut self, size: u64, at: u64) -> Result<Vec<u8>, Error> {
        if size > self.limits.pax_bytes as u64 {
            return Err(self.pax_limit(1));
        }
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let buffer = self.input.fill_buf().map_err(unwrap_input)?;
            let take = buffer.len().min(size as usize - data.len());
            if take == 0 {
                return Err(Error::Tar { offset: at, reason: Reason::Truncated("an extension header") });
            }
            data.extend_from_slice(&buffer[..take]);
            self.consume(take);
        }
        self.pending = size.next_multiple_of(BLOCK as u64) - size;
        self.skip_pending()?;
        Ok(data)
    }

    fn pax_limit(&self, share: usize) -> Error {
        Error::Limit {
            field: "pax_bytes",
            what: "bytes in an extension header",
            limit: (self.limits.pax_bytes / share) as u64,
        }
    }

    fn skip_pending(&mut self) -> Result<(), Error> {
        while self.pending > 0 {
            let available = self.input.fill_buf().map_err(unwrap_input)?.len();
            if available == 0 {
                let reason = Reason::Truncated("the data of an entry");
                return Err(Error::Tar { offset: self.position, reason });
            }
            let take = available.min(usize::try_from(self.pending).unwrap_or(usize::MAX));
            self.pending -= take as u64;
            self.consume(take);
        }
        Ok(())
    }

    /// Fills `block` as far as the input goes and returns how far that was.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = self.input.fill_buf().map_err(unwrap_input)?;
            let take = buffer.len().min(BLOCK - filled);
            if take == 0 {
                break;
            }
            block[filled..filled + take].copy_from_slice(&buffer[..take]);
            filled += take;
            self.consume(take);
        }
        Ok(filled)
    }

    /// After the end marker's first block: another zero block, then nothing but zeros.
    fn expect_end(&mut self) -> Result<(), Error> {
        let mut seen = 0;
        loop {
            let buffer = self.input.fill_buf().map_err(unwrap_input)?;
            if buffer.is_empty() {
                return Ok(());
            }
            let len = buffer.len();
            if let Some(at) = buffer.iter().position(|b| *b != 0) {
                let alone = seen + at < BLOCK;
                let reason = if alone { Reason::LoneZeroBlock } else { Reason::TrailingData };
                return Err(Error::Tar { offset: self.position + at as u64, reason });
            }
            seen += len;
            self.consume(len);
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.position += bytes as u64;
    }
}

fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
}

fn named(path: &[u8], error: Error) -> Error {
    match error {
        Error::Tar { reason, .. } => Error::entry(path, reason),
        other => other,
    }
}

/// Errors of the stages in front travel inside [`io::Error`]s.
fn unwrap_input(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(Error::io("reading the layer tar"))
}
