//! The guest's serial console, read into a bounded file.
//!
//! QEMU holds one end of a socket pair and no file: what the guest prints can fill neither a disk nor our memory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::config::Console;
use crate::{Error, Result};

/// Smallest bound that still leaves a readable log.
const MIN_LIMIT: u64 = 8192;
/// How much of the log's end is searched for the reason of a guest's death, in bytes.
const TAIL: u64 = 16 << 10;

/// Opens the log and starts the thread that fills it; returns the end for QEMU. The thread ends when
/// QEMU's end is closed, that is with QEMU.
pub(crate) fn start(console: &Console) -> Result<OwnedFd> {
    let mut log = Log::open(&console.path, console.limit.max(MIN_LIMIT) / 2)?;
    let (mut ours, theirs) = UnixStream::pair().map_err(Error::os("create the console's socket pair"))?;
    std::thread::Builder::new()
        .name("vmm-console".into())
        .stack_size(64 << 10)
        .spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = ours.read(&mut buffer) {
                // A full disk must not stop the guest: what cannot be written is dropped.
                let _ = log.write(buffer.get(..n).unwrap_or_default());
            }
        })
        .map_err(Error::os("start the console's thread"))?;
    Ok(theirs.into())
}

/// What the console says about the end of a guest, on one line and printable: the kernel's panic message if there
/// is one, otherwise the last lines. Empty when there is nothing.
pub(crate) fn last_words(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let panic = lines.iter().find(|line| line.contains("Kernel panic")).copied();
    let words = panic.map_or_else(
        || lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; "),
        String::from,
    );
    let printable: String =
        words.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).take(400).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Two files, each at most half the bound: the older is dropped when the newer is full.
struct Log {
    file: File,
    path: PathBuf,
    written: u64,
    half: u64,
}

impl Log {
    fn open(path: &Path, half: u64) -> Result<Self> {
        let file = create(path).map_err(|source| Error::File {
            what: "console log",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { file, path: path.to_owned(), written: 0, half })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.written + bytes.len() as u64 > self.half {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = create(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_output_stays_within_the_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log::open(&path, 10_000).unwrap();
        for n in 0..10_000 {
            log.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        let sizes: u64 =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(sizes <= 20_000, "{sizes}");
        assert_eq!(last_words(&path), "line 9997; line 9998; line 9999");
    }

    #[test]
    fn a_link_in_place_of_the_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(Log::open(&path, 10_000).is_err());
    }

    #[test]
    fn the_last_words_are_the_panic_and_carry_no_terminal_commands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, b"\x1b]0;evil\x07  x\r\n\xff").unwrap();
        assert_eq!(last_words(&path), "]0;evil x;");
        std::fs::write(&path, b"boot\n[ 1.0] Kernel panic - not syncing: why\nCPU: 0\n").unwrap();
        assert_eq!(last_words(&path), "[ 1.0] Kernel panic - not syncing: why");
        assert_eq!(last_words(&dir.path().join("none")), "");
    }
}
