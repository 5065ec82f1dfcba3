//! A process's standard streams as containerd names them: FIFOs, or files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_sandbox::Io;
use cloister_sandbox::pump::FdWriter;

use crate::failure::{Failure, Result};

/// How long a FIFO's reader may take to open it.
const READER: Duration = Duration::from_secs(3);
/// Time between two looks for it.
const LOOK: Duration = Duration::from_millis(1);

/// What containerd says about a process's streams; an empty name means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Read by the process.
    pub stdin: String,
    /// Written by the process.
    pub stdout: String,
    /// Written by the process; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// Opened streams.
pub struct Streams {
    /// For the guest's process; without the size of a terminal.
    pub io: Io,
    /// Keeps standard input open until containerd closes it.
    pub stdin: Option<OwnedFd>,
    /// For the shim's own last words about the process.
    pub words: Option<File>,
}

/// Opens the streams.
///
/// # Errors
/// When a name is no FIFO or file, or a scheme this shim does not know.
pub async fn open(names: &Names) -> Result<Streams> {
    let (stdin, keeper) = match names.stdin.as_str() {
        "" => (None, None),
        name => {
            let path = path(name)?;
            let failed = |error| Failure::Other(format!("cannot open {}: {error}", path.display()));
            let reader = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&path)
                .map_err(failed)?;
            // The end of input is when containerd says so, not when its present writer goes.
            let keeper = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&path)
                .map_err(failed)?;
            (Some(reader.into()), Some(keeper.into()))
        }
    };
    let stdout = output(&names.stdout).await?;
    let stderr = if names.terminal { None } else { output(&names.stderr).await? };
    let words = match stderr.as_ref().or(stdout.as_ref()) {
        Some(file) => Some(file.try_clone().map_err(Failure::other)?),
        None => None,
    };
    let sink = |file: File| -> Box<dyn Write + Send> { Box::new(FdWriter::new(file.into())) };
    let io = Io { stdin, stdout: stdout.map(sink), stderr: stderr.map(sink), terminal: None };
    Ok(Streams { io, stdin: keeper, words })
}

/// A FIFO is opened both ways: its reader may be away while containerd restarts, and must not miss anything.
async fn output(name: &str) -> Result<Option<File>> {
    if name.is_empty() {
        return Ok(None);
    }
    let path = path(name)?;
    let file = if name.starts_with("file://") {
        OpenOptions::new().append(true).create(true).open(&path)
    } else {
        let _writer = when_read(&path).await;
        OpenOptions::new().read(true).write(true).open(&path)
    };
    file.map(Some).map_err(|error| Failure::Other(format!("cannot open {}: {error}", path.display())))
}

/// Opens a FIFO once it has a reader. One that opens it after a short process has come and gone would wait for ever for
/// somebody to write.
async fn when_read(path: &Path) -> Option<File> {
    let begun = Instant::now();
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(writer) => return Some(writer),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && begun.elapsed() < READER => {
                tokio::time::sleep(LOOK).await;
            }
            // Nobody reads, or what is wrong shows when it is opened to stay.
            Err(_) => return None,
        }
    }
}

fn path(name: &str) -> Result<PathBuf> {
    match name.split_once("://") {
        None => Ok(PathBuf::from(name)),
        Some(("fifo" | "file", path)) => Ok(PathBuf::from(path)),
        Some((scheme, _)) => Err(Failure::Unimplemented(format!(
            "this shim writes to FIFOs and files, not to {scheme}:// addresses"
        ))),
    }
}

/// Writes a line of the shim's own about a process, without waiting for a reader.
pub fn say(words: &File, line: &str) {
    let say = || -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(words)?;
        rustix::fs::fcntl_setfl(words, flags | rustix::fs::OFlags::NONBLOCK)?;
        let written = (&*words).write_all(format!("cloister: {line}\n").as_bytes());
        rustix::fs::fcntl_setfl(words, flags)?;
        written
    };
    if let Err(error) = say() {
        tracing::debug!(%error, line, "nobody reads the last words");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn fifo(folder: &std::path::Path, name: &str) -> String {
        let path = folder.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn output_opens_without_a_reader_and_ends_with_its_last_holder() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names { stdout: fifo(folder.path(), "out"), ..Names::default() };
        let mut streams = open(&names).await.unwrap();
        streams.io.stdout.as_mut().unwrap().write_all(b"hello ").unwrap();
        let mut reader = File::open(&names.stdout).unwrap();
        say(streams.words.as_ref().unwrap(), "gone");
        drop(streams);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello cloister: gone\n");
    }

    #[tokio::test]
    async fn a_reader_that_comes_late_sees_what_a_short_process_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names { stdout: fifo(folder.path(), "out"), ..Names::default() };
        let path = names.stdout.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            std::fs::read_to_string(path).unwrap()
        });
        let mut streams = open(&names).await.unwrap();
        streams.io.stdout.as_mut().unwrap().write_all(b"short").unwrap();
        drop(streams);
        assert_eq!(reader.join().unwrap(), "short");
    }

    #[tokio::test]
    async fn unknown_schemes_are_refused_by_name() {
        let names = Names { stdout: "binary:///bin/log".to_owned(), ..Names::default() };
        let error = open(&names).await.err().unwrap();
        assert!(matches!(&error, Failure::Unimplemented(text) if text.contains("binary")), "{error}");
    }
}
