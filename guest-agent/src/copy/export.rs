//! Packing a file or folder of a container's root as a tar stream. Links below it are packed as links; those on the way
//! to it stop at the root.

use std::ffi::{CStr, OsStr};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, major, minor, openat, readlinkat};
use tar::{Builder, EntryType, Header};

use crate::error::{Context, Error, Kind, Result};
use crate::inroot::{Root, lstat};

/// How deep folders may be nested: each level holds a descriptor.
const DEPTH: usize = 512;

/// Packs what is at `path`, under its own last name; gives the bytes of file content.
///
/// # Errors
/// [`Kind::NotFound`] when there is nothing, otherwise when something cannot be read or the host hangs up.
pub fn export(root: &Root, path: &str, stream: OwnedFd) -> Result<u64> {
    let path = Path::new(path);
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, name),
        _ => (Path::new("/"), OsStr::new(".")),
    };
    let folder = root.folder(parent)?;
    let stat = lstat(&folder, name)
        .map_err(|e| Error::new(Kind::NotFound, format!("{} of the container: {e}", path.display())))?;
    let mut export =
        Export { tar: Builder::new(BufWriter::with_capacity(256 << 10, super::file(stream)?)), bytes: 0 };
    let what = || format!("send {}", path.display());
    export.entry(&folder, name, Path::new(name), &stat, 0).context(what)?;
    export.tar.into_inner().and_then(|mut out| out.flush()).context(what)?;
    Ok(export.bytes)
}

struct Export<W: Write> {
    tar: Builder<W>,
    bytes: u64,
}

impl<W: Write> Export<W> {
    fn entry(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        let mut header = header(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        header.set_entry_type(match kind {
            FileType::RegularFile => EntryType::Regular,
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::Fifo => EntryType::Fifo,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            _ => return Ok(()), // tar has no sockets
        });
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = std::fs::File::from(openat(parent, name, flags, Mode::empty())?);
                let size = stat.st_size.unsigned_abs();
                header.set_size(size);
                // The size is in the header already: a file that shrinks meanwhile is filled, one that grows is cut.
                let content = file.take(size).chain(io::repeat(0)).take(size);
                self.tar.append_data(&mut header, path, content)?;
                self.bytes += size;
                Ok(())
            }
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let folder = openat(parent, name, flags, Mode::empty())?;
                let slashed = path.join("");
                self.tar.append_data(&mut header, &slashed, io::empty())?;
                if depth >= DEPTH {
                    return Err(io::Error::other(format!("{} is nested too deep", path.display())));
                }
                self.folder(&folder, path, depth)
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                self.tar.append_link(&mut header, path, OsStr::from_bytes(target.as_bytes()))
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_device_major(major(stat.st_rdev))?;
                header.set_device_minor(minor(stat.st_rdev))?;
                self.tar.append_data(&mut header, path, io::empty())
            }
            _ => self.tar.append_data(&mut header, path, io::empty()),
        }
    }

    fn folder(&mut self, folder: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = OsStr::from_bytes(name.to_bytes());
            let path: PathBuf = path.join(name);
            match lstat(folder, name) {
                Ok(stat) => self.entry(folder, name, &path, &stat, depth + 1)?,
                Err(rustix::io::Errno::NOENT) => {} // removed meanwhile
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    fn pack(folder: &Path, path: &str) -> Result<Vec<(String, EntryType, Vec<u8>)>> {
        let (agent, host) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut archive = tar::Archive::new(host);
            let entries = archive.entries().unwrap();
            entries
                .map(|entry| {
                    let mut entry = entry.unwrap();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    (entry.path().unwrap().display().to_string(), entry.header().entry_type(), content)
                })
                .collect::<Vec<_>>()
        });
        let result = export(&Root::open(folder).unwrap(), path, agent.into());
        let entries = reader.join().unwrap();
        result.map(|_| entries)
    }

    #[test]
    fn a_folder_is_packed_with_its_links_as_links() {
        let folder = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b").join(&long), "content").unwrap();
        symlink("/etc/passwd", folder.path().join("a/link")).unwrap();
        let mut entries = pack(folder.path(), "/a").unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<_> = entries.iter().map(|entry| entry.0.clone()).collect();
        assert_eq!(names, ["a/".to_owned(), "a/b/".into(), format!("a/b/{long}"), "a/link".into()]);
        assert_eq!(entries[2].2, b"content");
        assert_eq!(entries[3].1, EntryType::Symlink);
    }

    #[test]
    fn links_on_the_way_stop_at_the_root() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/etc", folder.path().join("out")).unwrap();
        assert_eq!(pack(folder.path(), "/out/passwd").unwrap_err().kind, Kind::NotFound);
        assert_eq!(pack(folder.path(), "/missing").unwrap_err().kind, Kind::NotFound);
    }
}
