//! Three threads in a row: read and hash the blob; inflate; and, on the caller's thread, hash, write and parse the tar.
//!
//! Buffers go round: each channel has a twin that brings them back, so a conversion allocates a fixed number of them.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::blob::{Compression, Expected};
use crate::digest::{Digest, Hasher};
use crate::erofs::Writer;
use crate::error::Error;
use crate::inflate::{BUFFER, Output, Piece, Source, Stop};
use crate::limits::Limits;

/// Bytes read from the blob at once.
pub const READ: usize = 256 << 10;
/// Buffers in flight between two threads; a slow stage makes the one before it wait.
pub const DEPTH: usize = 8;

/// What travels: bytes, or why there are no more. An end without error is a closed channel.
pub type Message = Result<Piece, Error>;

/// First stage: reads the blob to its end, hashes it and compares it with what is expected.
pub struct BlobReader<'a, R> {
    pub blob: R,
    pub expected: &'a Expected,
    pub limits: &'a Limits,
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> BlobReader<'_, R> {
    /// Runs until the blob ends or nobody listens. Errors travel down the channel.
    pub fn run(mut self, out: &SyncSender<Message>, recycled: &Receiver<Vec<u8>>) -> Option<(Digest, u64)> {
        match self.read(out, recycled) {
            Ok(result) => result,
            Err(error) => {
                // If nobody listens any more, the listener has an error of its own.
                let _ = out.send(Err(error));
                None
            }
        }
    }

    fn read(
        &mut self,
        out: &SyncSender<Message>,
        recycled: &Receiver<Vec<u8>>,
    ) -> Result<Option<(Digest, u64)>, Error> {
        let mut hasher = Hasher::new();
        let mut size = 0;
        loop {
            let mut bytes = recycled.try_recv().unwrap_or_else(|_| vec![0; READ]);
            let end = fill(&mut self.blob, &mut bytes)?;
            if end == 0 {
                break;
            }
            size += end as u64;
            if let Some(expected) = self.expected.size.filter(|expected| size > *expected) {
                return Err(Error::BlobSize { expected, found: size });
            }
            if size > self.limits.compressed_bytes {
                let limit = self.limits.compressed_bytes;
                return Err(Error::Limit { field: "compressed_bytes", what: "bytes of blob", limit });
            }
            hasher.update(&bytes[..end]);
            (self.progress)(size);
            if out.send(Ok(Piece { bytes, start: 0, end })).is_err() {
                return Ok(None);
            }
        }
        if let Some(expected) = self.expected.size.filter(|expected| size != *expected) {
            return Err(Error::BlobSize { expected, found: size });
        }
        let found = hasher.finish();
        match self.expected.digest {
            Some(expected) if expected != found => Err(Error::BlobDigest { expected, found }),
            _ => Ok(Some((found, size))),
        }
    }
}

/// Reads until `bytes` is full or the input ends; returns how far.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("reading the layer blob")(error)),
        }
    }
    Ok(filled)
}

/// The second stage's input.
pub struct FromReader {
    pub pieces: Receiver<Message>,
    pub recycle: Sender<Vec<u8>>,
    /// A piece taken early to look at its first bytes.
    pub first: Option<Piece>,
    /// Compressed bytes given out, for the ratio; shared with [`ToWriter`].
    pub taken: std::rc::Rc<std::cell::Cell<u64>>,
}

impl Source for FromReader {
    fn next(&mut self, used: Piece) -> Result<Option<Piece>, Stop> {
        if !used.bytes.is_empty() {
            // Nobody may be left to reuse it.
            let _ = self.recycle.send(used.bytes);
        }
        let piece = match self.first.take() {
            Some(piece) => piece,
            None => match self.pieces.recv() {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => return Err(Stop::Neighbour(error)),
                Err(_) => return Ok(None),
            },
        };
        self.taken.set(self.taken.get() + piece.data().len() as u64);
        Ok(Some(piece))
    }
}

/// The second stage's output: counts, and refuses bombs.
pub struct ToWriter<'l> {
    pub out: SyncSender<Message>,
    pub recycled: Receiver<Vec<u8>>,
    pub limits: &'l Limits,
    pub taken: std::rc::Rc<std::cell::Cell<u64>>,
    pub given: u64,
}

impl Output for ToWriter<'_> {
    fn exchange(&mut self, full: Piece) -> Result<Vec<u8>, Stop> {
        self.given += full.data().len() as u64;
        let limit = self.limits.uncompressed_bytes;
        if self.given > limit {
            let error = Error::Limit { field: "uncompressed_bytes", what: "bytes of tar", limit };
            return Err(Stop::Neighbour(error));
        }
        let ratio = self.limits.ratio;
        if self.given > self.limits.ratio_floor && self.given / ratio.max(1) > self.taken.get() {
            let what = "bytes of tar per compressed byte";
            return Err(Stop::Neighbour(Error::Limit { field: "ratio", what, limit: ratio }));
        }
        self.out.send(Ok(full)).map_err(|_| Stop::Abandoned)?;
        Ok(self.recycled.try_recv().unwrap_or_else(|_| vec![0; BUFFER]))
    }
}

/// Passes an uncompressed tar on.
pub fn pass(mut source: impl Source, mut output: impl Output) -> Result<(), Stop> {
    let mut buffer = vec![0; BUFFER];
    let mut used = Piece::default();
    while let Some(piece) = source.next(used)? {
        let data = piece.data();
        buffer[..data.len()].copy_from_slice(data);
        buffer = output.exchange(Piece { bytes: buffer, start: 0, end: data.len() })?;
        used = piece;
    }
    Ok(())
}

/// Runs the decompressor for `format`.
pub fn inflate(
    format: Compression,
    source: FromReader,
    output: ToWriter<'_>,
    checksum: bool,
) -> Result<(), Option<Error>> {
    let window_log = output.limits.zstd_window_log;
    let result = match format {
        Compression::None => pass(source, output),
        Compression::Gzip => crate::inflate::gunzip(source, output, checksum),
        Compression::Zstd => crate::inflate::unzstd(source, output, window_log),
    };
    result.map_err(|stop| match stop {
        Stop::Damage(damage) => {
            Some(Error::Compression { format: format.name(), problem: damage.to_string() })
        }
        Stop::Zstd(problem) => Some(Error::Compression { format: format.name(), problem }),
        Stop::Neighbour(error) => Some(error),
        Stop::Abandoned => None,
    })
}

/// The third stage: a tar that is hashed and written as it is read.
pub struct TarStream<'w, 'f> {
    pub pieces: Receiver<Message>,
    pub recycle: Sender<Vec<u8>>,
    pub current: Piece,
    pub writer: &'w mut Writer<'f>,
    pub hasher: Hasher,
    pub size: u64,
}

impl TarStream<'_, '_> {
    fn advance(&mut self) -> Result<(), Error> {
        let used = std::mem::take(&mut self.current);
        if !used.bytes.is_empty() {
            let _ = self.recycle.send(used.bytes);
        }
        let Ok(message) = self.pieces.recv() else { return Ok(()) };
        self.current = message?;
        let data = self.current.data();
        self.hasher.update(data);
        self.writer.write(data)?;
        self.size += data.len() as u64;
        Ok(())
    }
}

impl Read for TarStream<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let len = data.len().min(out.len());
        out[..len].copy_from_slice(&data[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for TarStream<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.start == self.current.end {
            self.advance().map_err(io::Error::other)?;
        }
        Ok(self.current.data())
    }

    fn consume(&mut self, bytes: usize) {
        self.current.start += bytes;
    }
}
