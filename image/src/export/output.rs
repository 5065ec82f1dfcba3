//! Where an export goes: a file that appears when it is complete, or a stream.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::store::Store;

/// Bytes written at a time.
const BUFFER: usize = 1 << 20;

/// The target of an export.
pub enum Output {
    /// A file; written beside its place and renamed when complete. A device or FIFO is written to as it is.
    Path(PathBuf),
    /// Any stream, such as standard output.
    Stream(Box<dyn Write>),
}

impl Output {
    /// `-` is standard output, anything else a file.
    pub fn from_arg(arg: &Path) -> Self {
        if arg.as_os_str() == "-" { Self::Stream(Box::new(io::stdout())) } else { Self::Path(arg.to_owned()) }
    }

    /// Writes from front to end; returns the bytes written.
    pub(super) fn stream(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
        match self.settle()? {
            Settled::File(place) => {
                let mut out =
                    Counter { inner: BufWriter::with_capacity(BUFFER, place.temp.as_file()), bytes: 0 };
                write(&mut out)?;
                out.flush().at("write", &place.path)?;
                let bytes = out.bytes;
                drop(out);
                place.publish()?;
                Ok(bytes)
            }
            Settled::Stream(stream) => {
                let mut out = Counter { inner: BufWriter::with_capacity(BUFFER, stream), bytes: 0 };
                write(&mut out)?;
                out.flush().at("write", Path::new("the output"))?;
                Ok(out.bytes)
            }
        }
    }

    /// Writes a file in any order; on its way to a stream it stands in the store's temporary folder.
    pub(super) fn file(self, store: &Store, write: impl FnOnce(&File) -> Result<()>) -> Result<u64> {
        match self.settle()? {
            Settled::File(place) => {
                write(place.temp.as_file())?;
                let bytes = place.temp.as_file().metadata().at("read", &place.path)?.len();
                place.publish()?;
                Ok(bytes)
            }
            Settled::Stream(mut stream) => {
                let temp = store.temp()?;
                let (mut file, path) = temp.file("export")?;
                write(&file)?;
                file.seek(SeekFrom::Start(0)).at("read", &path)?;
                let bytes = io::copy(&mut file, &mut stream).at("write", Path::new("the output"))?;
                stream.flush().at("write", Path::new("the output"))?;
                Ok(bytes)
            }
        }
    }

    fn settle(self) -> Result<Settled> {
        let path = match self {
            Self::Stream(stream) => return Ok(Settled::Stream(stream)),
            Self::Path(path) => path,
        };
        if let Ok(meta) = std::fs::metadata(&path)
            && (meta.file_type().is_fifo() || meta.file_type().is_char_device())
        {
            return Ok(Settled::Stream(Box::new(File::options().write(true).open(&path).at("open", &path)?)));
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let temp = tempfile::Builder::new()
            .prefix(".cloister-export-")
            // As any new file: what the user's umask leaves.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&dir)
            .at("make a file in", &dir)?;
        Ok(Settled::File(Place { temp, path, dir }))
    }
}

enum Settled {
    File(Place),
    Stream(Box<dyn Write>),
}

/// A file in the making beside its final place; removed when dropped.
struct Place {
    temp: tempfile::NamedTempFile,
    path: PathBuf,
    dir: PathBuf,
}

impl Place {
    fn publish(self) -> Result<()> {
        self.temp.as_file().sync_all().at("write to disk", &self.path)?;
        self.temp.persist(&self.path).map_err(|error| error.error).at("publish", &self.path)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).at("write to disk", &self.dir)
    }
}

/// Counts what passes.
struct Counter<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
