//! Files of a root file system that the agent does not trust: links never lead out of it (`openat2(2)`,
//! RESOLVE_IN_ROOT), nothing blocks, and what is read is bounded.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, openat, openat2};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};

/// A folder that acts as `/` for the paths below it.
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens a folder as a root.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .context(|| format!("open {} as a root", path.display()))?;
        Ok(Self { folder })
    }

    /// Opens `path` inside the root; `..` and links stop at the root.
    pub fn openat2(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something was renamed meanwhile, and the kernel could not prove that `..` stayed inside.
        for _ in 0..16 {
            match openat2(self.folder.as_fd(), relative, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Reads a regular file of at most `limit` bytes; `None` when there is none at that path.
    ///
    /// # Errors
    /// When it is no regular file, is larger, or cannot be read.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let file = match self.openat2(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e).context(|| format!("open {path} of the image")),
        };
        let stat = fstat(&file).context(|| format!("stat {path} of the image"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::invalid(format!("{path} of the image is not a regular file")));
        }
        let mut content = Vec::new();
        let mut limited = std::fs::File::from(file).take(limit + 1);
        limited.read_to_end(&mut content).context(|| format!("read {path} of the image"))?;
        if content.len() as u64 > limit {
            return Err(Error::invalid(format!("{path} of the image is larger than {limit} bytes")));
        }
        Ok(Some(content))
    }

    /// Creates a folder and its parents (mode 0755, root's) unless they exist.
    ///
    /// # Errors
    /// When something else is in the way.
    pub fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.create_dirs(path, Mode::from_raw_mode(0o755))
    }

    /// The same with the mode that the root has, as kubelet makes the folders of a subPath.
    ///
    /// # Errors
    /// When something else is in the way.
    pub fn create_dir_like_root(&self, path: &Path) -> Result<()> {
        let root = fstat(&self.folder).context(|| "stat the volume".into())?;
        self.create_dirs(path, Mode::from_raw_mode(root.st_mode & 0o7777))
    }

    fn create_dirs(&self, path: &Path, mode: Mode) -> Result<()> {
        let mut done = std::path::PathBuf::from("/");
        for part in path.components() {
            let std::path::Component::Normal(name) = part else { continue };
            let parent = self.folder(&done)?;
            let what = || format!("create {} in the container", done.join(name).display());
            match rustix::fs::mkdirat(&parent, name, mode) {
                // Our umask took bits away, and mkdir(2) knows no set-group-id.
                Ok(()) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let made = openat(&parent, name, flags, Mode::empty()).context(what)?;
                    fchmod(&made, mode).context(what)?;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).context(what),
            }
            done.push(name);
        }
        self.folder(&done).map(drop)
    }

    /// Opens a folder of the root, for use with the `…at` calls.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none.
    pub fn folder(&self, path: &Path) -> Result<OwnedFd> {
        self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(|e| {
            let kind = if e == Errno::NOENT { Kind::NotFound } else { Kind::Invalid };
            Error::new(kind, format!("open folder {} of the container: {e}", path.display()))
        })
    }
}

/// The type and metadata of `name` in an open folder, links not followed.
pub fn lstat(folder: &OwnedFd, name: &std::ffi::OsStr) -> rustix::io::Result<rustix::fs::Stat> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        (folder, root)
    }

    #[test]
    fn absolute_links_and_dots_stay_inside() {
        let (folder, root) = root();
        std::fs::write(folder.path().join("passwd"), "inside").unwrap();
        symlink("/passwd", folder.path().join("absolute")).unwrap();
        symlink("../../../../passwd", folder.path().join("dots")).unwrap();
        symlink("/etc/shadow", folder.path().join("escape")).unwrap();
        for path in ["/absolute", "dots", "/../../passwd"] {
            assert_eq!(root.read(path, 100).unwrap().as_deref(), Some(&b"inside"[..]), "{path}");
        }
        assert_eq!(root.read("/escape", 100).unwrap(), None);
    }

    #[test]
    fn pipes_and_large_files_are_refused() {
        let (folder, root) = root();
        rustix::fs::mknodat(CWD, folder.path().join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        std::fs::write(folder.path().join("large"), vec![0; 101]).unwrap();
        assert!(root.read("/fifo", 100).unwrap_err().message.contains("not a regular file"));
        assert!(root.read("/large", 100).unwrap_err().message.contains("larger than 100"));
    }

    #[test]
    fn folders_are_created_through_links_inside() {
        let (folder, root) = root();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        symlink("/real", folder.path().join("link")).unwrap();
        root.create_dir_all(Path::new("/link/a/b")).unwrap();
        assert!(folder.path().join("real/a/b").is_dir());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(root.create_dir_all(Path::new("/file/x")).is_err());
    }
}
