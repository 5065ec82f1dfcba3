//! Files of a folder that may be someone else's: nothing outside it is ever opened.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::files::{Files, Section};
use crate::error::{Error, IoContext, Result};

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: OwnedFd,
    name: String,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // The folder the user named may well be a symlink; what is inside may not.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
        Ok(Self { dir, name: path.display().to_string() })
    }
}

impl Files for Folder {
    fn open(&self, path: &str) -> Result<Option<Section>> {
        let full = || Path::new(&self.name).join(path);
        let mut parts = path.split('/').peekable();
        let mut dir: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            if matches!(part, "" | "." | "..") {
                return Err(Error::invalid(
                    self.name(),
                    format!("{} is not a path inside it", crate::oci::short(path)),
                ));
            }
            // One step at a time and no step over a symlink; NONBLOCK so that a FIFO does not hold us up.
            let last = parts.peek().is_none();
            let kind = if last { OFlags::NONBLOCK } else { OFlags::DIRECTORY };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
            let at = dir.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd);
            let next = match rustix::fs::openat(at, part, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(Error::invalid(
                        full().display().to_string(),
                        "a symlink or not a folder; links are not followed",
                    ));
                }
                Err(errno) => return Err(errno).at("open", &full()),
            };
            if last {
                let file = File::from(next);
                let meta = file.metadata().at("read", &full())?;
                if !meta.is_file() {
                    return Err(Error::invalid(full().display().to_string(), "not a regular file"));
                }
                return Ok(Some(Section::new(Arc::new(file), 0, meta.len())));
            }
            dir = Some(next);
        }
        Ok(None)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_opened() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        std::fs::write(dir.path().join("blobs/real"), "real").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), Mode::RWXU).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.read("blobs/real", 10).unwrap(), b"real");
        assert!(folder.open("blobs/none").unwrap().is_none());
        for path in ["out/secret", "link", "../x", "/etc/passwd", "blobs", "fifo", "", "blobs/../blobs/real"]
        {
            assert!(folder.open(path).is_err(), "{path:?}");
        }
        assert!(folder.read("blobs/real", 3).unwrap_err().to_string().contains("limit"));
    }
}
