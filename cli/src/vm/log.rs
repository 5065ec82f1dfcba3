//! What a machine's command has written, in two files of bounded size.
//!
//! `log` is a sequence of frames: one byte 1 (standard output) or 2 (standard error), three zero bytes, the length as
//! u32 in network order, then that many bytes. When `log` is full it becomes `log.1`, replacing the one before.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of each of the two files.
const LIMIT: u64 = 8 << 20;
/// Longest frame; the pumps move less at once.
const LONGEST: usize = 1 << 20;

/// One of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out = 1,
    /// Standard error.
    Err = 2,
}

struct Files {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

/// Appends to a machine's log; clones share it.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Files>>);

impl Log {
    /// Starts the log of a machine.
    pub fn create(folder: &Path) -> io::Result<Self> {
        Self::with_limit(folder, LIMIT)
    }

    fn with_limit(folder: &Path, limit: u64) -> io::Result<Self> {
        let path = folder.join("log");
        let file = open_new(&path)?;
        Ok(Self(Arc::new(Mutex::new(Files { path, file, written: 0, limit }))))
    }

    /// A writer that sends everything to `first` (when there is one) and to the log. A full disk ends the log, never
    /// the command.
    pub fn tee(&self, stream: Stream, first: Option<Box<dyn Write + Send>>) -> Box<dyn Write + Send> {
        Box::new(Tee { log: Some(self.clone()), stream, first })
    }

    fn append(&self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in bytes.chunks(LONGEST) {
            if files.written >= files.limit {
                fs::rename(&files.path, files.path.with_extension("1"))?;
                files.file = open_new(&files.path)?;
                files.written = 0;
            }
            let length = u32::try_from(part.len()).unwrap_or_default().to_be_bytes();
            let [a, b, c, d] = length;
            let mut frame = Vec::with_capacity(8 + part.len());
            frame.extend([stream as u8, 0, 0, 0, a, b, c, d]);
            frame.extend(part);
            files.file.write_all(&frame)?;
            files.written += frame.len() as u64;
        }
        Ok(())
    }
}

fn open_new(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

struct Tee {
    log: Option<Log>,
    stream: Stream,
    first: Option<Box<dyn Write + Send>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(first) = &mut self.first {
            first.write_all(bytes)?;
        }
        if let Some(log) = &self.log
            && let Err(error) = log.append(self.stream, bytes)
        {
            tracing::warn!(%error, "the log of this microVM ends here");
            self.log = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.first.as_mut().map_or(Ok(()), |first| first.flush())
    }
}

/// Reads a log while it may still be written.
pub struct Reader {
    path: PathBuf,
    files: Vec<BufReader<File>>,
    current: Option<(u64, BufReader<File>)>,
    partial: Vec<u8>,
}

impl Reader {
    /// Opens what there is of a machine's log.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join("log");
        let mut files = Vec::new();
        match File::open(path.with_extension("1")) {
            Ok(file) => files.push(BufReader::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let current = open_current(&path)?;
        Ok(Self { path, files, current, partial: Vec::new() })
    }

    /// Hands on every complete frame that is there now; call again for more.
    pub fn drain(&mut self, sink: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>) -> io::Result<()> {
        for mut file in std::mem::take(&mut self.files) {
            file.read_to_end(&mut self.partial)?;
            consume(&mut self.partial, sink)?;
            // A frame that the end of an ended file cuts is of no use.
            self.partial.clear();
        }
        loop {
            let Some((inode, file)) = &mut self.current else {
                self.current = open_current(&self.path)?;
                if self.current.is_none() {
                    return Ok(());
                }
                continue;
            };
            loop {
                let mut piece = Vec::new();
                let got = file.by_ref().take(LONGEST as u64).read_to_end(&mut piece)?;
                if got == 0 {
                    break;
                }
                self.partial.append(&mut piece);
                consume(&mut self.partial, sink)?;
            }
            match fs::metadata(&self.path) {
                Ok(meta) if meta.ino() != *inode => {
                    self.current = None;
                    self.partial.clear();
                }
                _ => return Ok(()),
            }
        }
    }
}

fn open_current(path: &Path) -> io::Result<Option<(u64, BufReader<File>)>> {
    match File::open(path) {
        Ok(file) => Ok(Some((file.metadata()?.ino(), BufReader::new(file)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes complete frames off the front.
fn consume(bytes: &mut Vec<u8>, sink: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the log is damaged");
    let mut used = 0;
    while let Some([kind, 0, 0, 0, a, b, c, d, rest @ ..]) = bytes.get(used..) {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let stream = match kind {
            1 => Stream::Out,
            2 => Stream::Err,
            _ => return Err(damaged()),
        };
        if length > LONGEST {
            return Err(damaged());
        }
        let Some(frame) = rest.get(..length) else { break };
        sink(stream, frame)?;
        used += 8 + length;
    }
    bytes.drain(..used);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-log-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn read(reader: &mut Reader) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        reader
            .drain(&mut |stream, bytes| {
                if stream == Stream::Out {
                    out.extend(bytes)
                } else {
                    err.extend(bytes)
                }
                Ok(())
            })
            .unwrap();
        (out, err)
    }

    #[test]
    fn both_streams_come_back_and_more_can_follow() {
        let dir = scratch("both");
        let log = Log::create(&dir).unwrap();
        log.tee(Stream::Out, None).write_all(b"one").unwrap();
        log.tee(Stream::Err, None).write_all(b"two").unwrap();
        let mut reader = Reader::open(&dir).unwrap();
        assert_eq!(read(&mut reader), (b"one".to_vec(), b"two".to_vec()));
        log.tee(Stream::Out, None).write_all(b"three").unwrap();
        assert_eq!(read(&mut reader), (b"three".to_vec(), Vec::new()));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_log_keeps_the_newest_and_stays_small() {
        let dir = scratch("rotate");
        let log = Log::with_limit(&dir, 1000).unwrap();
        let mut reader = Reader::open(&dir).unwrap();
        let mut all = Vec::new();
        for i in 0..100u8 {
            log.tee(Stream::Out, None).write_all(&[i; 100]).unwrap();
            all.extend(read(&mut reader).0);
        }
        assert_eq!(all.len(), 10_000, "a reader that follows misses nothing");
        let size = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
        assert!(size("log") <= 1108 && size("log.1") <= 1108);
        let late = read(&mut Reader::open(&dir).unwrap()).0;
        assert_eq!(late.last(), Some(&99));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_failing_screen_stops_the_writer_but_a_failing_log_does_not() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = scratch("broken");
        let log = Log::with_limit(&dir, 10).unwrap();
        assert!(log.tee(Stream::Out, Some(Box::new(Broken))).write_all(b"x").is_err());
        let mut tee = log.tee(Stream::Out, None);
        tee.write_all(&[0; 20]).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        tee.write_all(&[0; 20]).unwrap();
    }
}
