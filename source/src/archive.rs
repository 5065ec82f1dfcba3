//! Archives: what is compressed becomes a plain tar on disk, whose entries become files of a folder.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cloister_image::source::unpacked;
use cloister_layer::error::Error as TarError;
use cloister_layer::tar::{Entry, EntryKind, Reader, SparseMap};

use crate::folder::{Attributes, Folder, Place};
use crate::hash::{Hashing, fraction};
use crate::watch::Watch;
use crate::{Error, Limits, Result};

/// Bytes that are read and written at a time.
const CHUNK: usize = 256 << 10;

/// How the entries of a tar are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As files.
    Archive,
    /// As a layer of an image: `.wh.` names take away what is there, and what is no file is left out.
    Layer,
}

/// Writes `input`, without its compression, into a file below `work` that has no name.
pub(crate) fn plain(
    what: &str,
    input: impl Read,
    work: &Path,
    limits: &Limits,
    watch: &Watch,
) -> Result<File> {
    let window = cloister_layer::Limits::default().zstd_window_log;
    let mut reader = unpacked(input, what, window).map_err(|error| Error::invalid(error.to_string()))?;
    let mut out = scratch(work)?;
    // A tar is a little larger than its files: a header for each.
    let limit = limits.bytes.saturating_add(limits.entries.saturating_mul(1024));
    copy(&mut reader, &mut out, limit, watch, |error| Error::invalid(format!("{what} is damaged: {error}")))?
        .ok_or_else(|| too_large(what, limits))?;
    out.seek(SeekFrom::Start(0)).map_err(|error| local("reading a file", &error))?;
    Ok(out)
}

/// A file below `work` that has no name, and goes with this process.
pub(crate) fn scratch(work: &Path) -> Result<File> {
    tempfile::tempfile_in(work).map_err(|error| local("making a file", &error))
}

/// Something of this node, which another attempt may find better.
pub(crate) fn local(doing: &str, error: &io::Error) -> Error {
    Error::unavailable(format!("{doing} below the build's folder: {error}"))
}

fn too_large(what: &str, limits: &Limits) -> Error {
    Error::invalid(format!("{what} has more than {} bytes of files", limits.bytes))
}

/// Copies at most `limit` bytes; `None` when there are more. `read` says what a failed read means.
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    limit: u64,
    watch: &Watch,
    read: impl Fn(io::Error) -> Error,
) -> Result<Option<u64>> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        watch.check()?;
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(Some(total)),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read(error)),
        };
        total += length as u64;
        if total > limit {
            return Ok(None);
        }
        to.write_all(&buffer[..length]).map_err(|error| local("writing", &error))?;
    }
}

/// Puts the entries of a plain tar into `folder`, below `base`.
pub(crate) fn unpack(tar: &File, kind: Kind, folder: &mut Folder, base: &[u8], watch: &Watch) -> Result<()> {
    let limits = cloister_layer::Limits {
        uncompressed_bytes: u64::MAX >> 1,
        sparse_segments: 1 << 12,
        ..cloister_layer::Limits::default()
    };
    let mut reader = Reader::new(BufReader::with_capacity(64 << 10, tar), &limits);
    loop {
        watch.check()?;
        let entry = reader.next_entry().map_err(|error| damaged(folder.what(), &error))?;
        let Some(entry) = entry else { return Ok(()) };
        let path = if base.is_empty() { entry.path.clone() } else { [base, b"/", &entry.path].concat() };
        if let Some(place) = folder.place(&path)?
            && !(kind == Kind::Layer && folder.whiteout(&place)?)
        {
            put(tar, kind, folder, &place, entry)?;
        }
    }
}

fn put(tar: &File, kind: Kind, folder: &mut Folder, place: &Place, entry: Entry) -> Result<()> {
    let last = Attributes {
        mode: entry.mode.into(),
        seconds: entry.mtime,
        nanoseconds: entry.mtime_nsec,
        xattrs: entry.xattrs,
    };
    match entry.kind {
        EntryKind::Directory => folder.make_folder(place, &last),
        EntryKind::Symlink(target) => folder.make_link(place, &target, &last),
        EntryKind::Hardlink(target) => folder.make_name(place, &target),
        EntryKind::File { data, size } => {
            let mut out = Hashing::new(folder.make_file(place, size)?);
            range(tar, data, size, &mut out).map_err(|error| local("writing", &error))?;
            end(folder, place, out, last)
        }
        EntryKind::Sparse(map) => {
            let file = sparse(tar, &map, folder.make_file(place, map.size)?);
            end(folder, place, file.map_err(|error| local("writing", &error))?, last)
        }
        EntryKind::CharDevice(..) | EntryKind::BlockDevice(..) | EntryKind::Fifo if kind == Kind::Layer => {
            Ok(())
        }
        EntryKind::CharDevice(..) | EntryKind::BlockDevice(..) | EntryKind::Fifo => {
            Err(folder.refused(place, "devices and pipes are not taken from an archive"))
        }
    }
}

/// Gives a file that is whole its attributes.
fn end(folder: &Folder, place: &Place, out: Hashing<File>, mut last: Attributes) -> Result<()> {
    let (file, digest) = out.end();
    last.nanoseconds = fraction(&digest);
    folder.finish(place, &file, &last)
}

/// Copies `size` bytes that begin at `at`. What the tar lacks of them, the reader reports.
fn range(tar: &File, mut at: u64, size: u64, out: &mut impl Write) -> io::Result<()> {
    let end = at.saturating_add(size);
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(CHUNK).min(CHUNK)];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(buffer.len());
        let length = tar.read_at(&mut buffer[..wanted], at)?;
        if length == 0 {
            break;
        }
        out.write_all(&buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Writes the parts of a file that are there; where they are counts as bytes too.
fn sparse(tar: &File, map: &SparseMap, file: File) -> io::Result<Hashing<File>> {
    file.set_len(map.size)?;
    let mut out = Hashing::new(file);
    let mut at = map.data;
    for (offset, length) in &map.segments {
        out.seek(*offset)?;
        range(tar, at, *length, &mut out)?;
        at += length;
    }
    Ok(out)
}

/// What the reader says, without calling the archive a layer.
fn damaged(what: &str, error: &TarError) -> Error {
    Error::invalid(match error.inner() {
        TarError::Tar { offset, reason } => {
            format!("{what} is no tar, or damaged at byte {offset}: {reason}")
        }
        TarError::Entry { name, reason } => format!("{what}: {name}: {reason}"),
        other => format!("{what}: {other}"),
    })
}
