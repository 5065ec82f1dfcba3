//! The whole way from a blob to a finished EROFS file.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use crate::apply::Applier;
use crate::blob::{Compression, Expected};
use crate::digest::{Digest, Hasher};
use crate::erofs::{self, Identity, TarRange, Writer};
use crate::error::Error;
use crate::inflate::Piece;
use crate::limits::Limits;
use crate::pipeline::{BlobReader, DEPTH, FromReader, TarStream, ToWriter, inflate};
use crate::tar::Reader;

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// SHA-256 of the blob.
    pub compressed_digest: Digest,
    /// Bytes of the blob.
    pub compressed_size: u64,
    /// SHA-256 of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// Bytes of the EROFS file.
    pub erofs_size: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// Inodes in the EROFS file, implied directories and whiteouts included.
    pub inodes: u64,
    /// Extended attributes left out, see the crate's documentation.
    pub dropped_xattrs: u64,
    /// How the blob was compressed.
    pub compression: Compression,
}

/// Converts the layer in `blob` to an EROFS file in `out`, which must be empty and open for reading and writing.
/// `progress` is called with the number of compressed bytes read so far, from another thread.
///
/// The superblock is written last, after every digest was checked: what an error or a crash leaves in `out` is no file
/// system. Nothing is synced; publish only after `fsync`.
///
/// # Errors
/// One line naming the entry, bound or digest at fault; see [`Error`].
pub fn convert(
    blob: impl Read + Send,
    expected: &Expected,
    out: &File,
    limits: &Limits,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Converted, Error> {
    thread::scope(|scope| {
        let (compressed_tx, compressed_rx) = sync_channel(DEPTH);
        let (spent_tx, spent_rx) = channel();
        let (tar_tx, tar_rx) = sync_channel(DEPTH);
        let (used_tx, used_rx) = channel();
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        let reader = spawn("layer-read")
            .spawn_scoped(scope, move || {
                BlobReader { blob, expected, limits, progress }.run(&compressed_tx, &spent_rx)
            })
            .map_err(Error::io("starting a thread"))?;
        let inflater = spawn("layer-inflate")
            .spawn_scoped(scope, move || {
                let taken = Rc::new(Cell::new(0));
                let mut from = FromReader { pieces: compressed_rx, recycle: spent_tx, first: None, taken };
                let taken = from.taken.clone();
                let to = ToWriter { out: tar_tx, recycled: used_rx, limits, taken, given: 0 };
                let failed = to.out.clone();
                let head = match from.pieces.recv() {
                    Ok(Ok(piece)) => Some(piece),
                    Ok(Err(error)) => {
                        let _ = failed.send(Err(error));
                        return None;
                    }
                    Err(_) => None,
                };
                let format = match Compression::detect(head.as_ref().map(Piece::data).unwrap_or_default()) {
                    Ok(format) => format,
                    Err(error) => {
                        let _ = failed.send(Err(error));
                        return None;
                    }
                };
                from.first = head;
                if let Err(Some(error)) = inflate(format, from, to, expected.diff_id.is_none()) {
                    let _ = failed.send(Err(error));
                    return None;
                }
                Some(format)
            })
            .map_err(Error::io("starting a thread"))?;
        let mut writer = Writer::new(out, limits.uncompressed_bytes);
        let tar_start = writer.position();
        let stream = TarStream {
            pieces: tar_rx,
            recycle: used_tx,
            current: Piece::default(),
            writer: &mut writer,
            hasher: Hasher::new(),
            size: 0,
        };
        let mut tar = Reader::new(stream, limits);
        let mut applier = Applier::new(limits, tar_start);
        while let Some(entry) = tar.next_entry()? {
            applier.apply(entry)?;
        }
        let TarStream { hasher, size: tar_size, .. } = tar.into_inner();
        let diff_id = hasher.finish();
        if let Some(expected) = expected.diff_id.filter(|expected| *expected != diff_id) {
            return Err(Error::DiffId { expected, found: diff_id });
        }
        let died =
            || Error::Io { doing: "converting a layer", source: std::io::Error::other("a thread died") };
        let compression = inflater.join().map_err(|_| died())?.ok_or_else(died)?;
        let (compressed_digest, compressed_size) = reader.join().map_err(|_| died())?.ok_or_else(died)?;
        let applied = applier.finish();
        if applied.dropped_xattrs > 0 {
            tracing::debug!(count = applied.dropped_xattrs, %diff_id, "extended attributes left out");
        }
        let identity = Identity {
            uuid: Identity::uuid_for(&diff_id),
            tar: Some(TarRange { offset: tar_start, len: tar_size, diff_id }),
        };
        let (erofs_size, inodes) = erofs::finish(writer, applied.tree, &identity)?;
        Ok(Converted {
            compressed_digest,
            compressed_size,
            diff_id,
            tar_size,
            erofs_size,
            entries: applied.entries,
            inodes,
            dropped_xattrs: applied.dropped_xattrs,
            compression,
        })
    })
}
