//! Unpacking a tar stream below a folder of a container's root. No name and no link in it leads out of that root, and
//! an existing link at the place of an entry is replaced, never followed.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown,
    futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::error::{Context, Error, Result};
use crate::inroot::{Root, lstat};

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries.
    pub entries: usize,
}

impl Bounds {
    /// As much as the file system takes.
    pub const NONE: Self = Self { bytes: u64::MAX, entries: usize::MAX };
}

/// Unpacks `stream` below `target`; gives the bytes of file content.
///
/// # Errors
/// When the archive is malformed or over its bounds, an entry is not possible, or the file system is full. What came
/// before stays.
pub fn import(root: &Root, target: &str, stream: OwnedFd, bounds: Bounds) -> Result<u64> {
    let target = Path::new(target);
    root.folder(target)?; // early, and in clear words
    let mut archive = Archive::new(BufReader::with_capacity(256 << 10, super::file(stream)?));
    let mut import = Import { root, target: target.to_owned(), bounds, bytes: 0, folders: Vec::new() };
    for (number, entry) in archive.entries().context(|| "read the tar stream".into())?.enumerate() {
        if number >= bounds.entries {
            return Err(Error::invalid(format!("the tar stream has more than {} entries", bounds.entries)));
        }
        let entry = entry.context(|| "read the tar stream".into())?;
        let name = entry.path().context(|| "read a name of the tar stream".into())?.into_owned();
        import.entry(&name, entry).context(|| format!("unpack {}", name.display()))?;
    }
    // After their content: it changed their times.
    for (folder, time) in import.folders.iter().rev() {
        let _ = import.times(folder, time);
    }
    // The padding after the end of the archive belongs to the stream.
    let _ = io::copy(&mut archive.into_inner(), &mut io::sink());
    Ok(import.bytes)
}

struct Import<'a> {
    root: &'a Root,
    target: PathBuf,
    bounds: Bounds,
    bytes: u64,
    folders: Vec<(PathBuf, Timestamps)>,
}

impl Import<'_> {
    fn entry<R: Read>(&mut self, name: &Path, mut entry: Entry<'_, R>) -> io::Result<()> {
        let header = entry.header().clone();
        let (uid, gid) = (narrow(header.uid()?)?, narrow(header.gid()?)?);
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        let time = time(header.mtime()?);
        let path = self.inside(name)?;
        let (parent, last) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(last)) => (parent.to_owned(), last.to_owned()),
            _ => return Ok(()), // the target itself
        };
        let kind = header.entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        if !parent.as_os_str().is_empty() {
            self.root.create_dir_all(&parent).map_err(|e| io::Error::other(e.message))?;
        }
        let folder = self.root.openat2(&parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        if kind.is_dir() {
            make_folder(&folder, &last)?;
            chownat(&folder, &last, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
            chmodat(&folder, &last, mode, AtFlags::empty())?;
            self.folders.push((path, time));
            return Ok(());
        }
        clear(&folder, &last)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&folder, &last, flags, Mode::from_raw_mode(0o600))?;
                let mut file = std::fs::File::from(file);
                let room = self.bounds.bytes - self.bytes;
                self.bytes += io::copy(&mut entry.by_ref().take(room), &mut file)?;
                if self.bytes == self.bounds.bytes && entry.read(&mut [0])? > 0 {
                    let most = self.bounds.bytes;
                    return Err(io::Error::other(format!("the archive holds more than {most} bytes")));
                }
                fchown(&file, Some(owner.0), Some(owner.1))?;
                fchmod(&file, mode)?; // after chown, which clears set-id bits
                futimens(&file, &time)?;
                return Ok(());
            }
            EntryType::Symlink => symlinkat(&*link(&entry)?, &folder, &last)?,
            EntryType::Link => {
                let source = self.inside(&link(&entry)?)?;
                let (Some(from), Some(name)) = (source.parent(), source.file_name()) else {
                    return Err(io::Error::other("a hard link to the folder itself"));
                };
                let from = self.root.openat2(from, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
                linkat(&from, name, &folder, &last, AtFlags::empty())?;
                return Ok(());
            }
            EntryType::Fifo => mknodat(&folder, &last, FileType::Fifo, mode, 0)?,
            EntryType::Char => mknodat(&folder, &last, FileType::CharacterDevice, mode, device(&header)?)?,
            EntryType::Block => mknodat(&folder, &last, FileType::BlockDevice, mode, device(&header)?)?,
            other => return Err(io::Error::other(format!("entry type {other:?} is not supported"))),
        }
        chownat(&folder, &last, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            chmodat(&folder, &last, mode, AtFlags::empty())?;
        }
        utimensat(&folder, &last, &time, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// The place of a name below the target. Absolute names are taken from the target; `..` is refused.
    fn inside(&self, name: &Path) -> io::Result<PathBuf> {
        let mut path = self.target.clone();
        for part in name.components() {
            match part {
                Component::Normal(part) => path.push(part),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::Error::other("the name contains .."));
                }
            }
        }
        if path == self.target && !matches!(name.components().next(), Some(Component::Normal(_))) {
            return Ok(PathBuf::from("/")); // has no last part: the target itself stays as it is
        }
        Ok(path)
    }

    fn times(&self, folder: &Path, time: &Timestamps) -> Result<()> {
        let open =
            self.root.openat2(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let open = open.map_err(|e| Error::invalid(e.to_string()))?;
        futimens(&open, time).context(|| format!("set times of {}", folder.display()))
    }
}

/// A folder that is there already is kept; anything else is replaced.
fn make_folder(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    if FileType::from_raw_mode(lstat(parent, name)?.st_mode) == FileType::Directory {
        return Ok(());
    }
    unlinkat(parent, name, AtFlags::empty())?;
    mkdirat(parent, name, Mode::from_raw_mode(0o700))
}

/// Makes room for an entry that is no folder. A folder in its place is an error, as with tar.
fn clear(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn link<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let name = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
    Ok(name.into_owned())
}

fn narrow(id: u64) -> io::Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| io::Error::other(format!("owner {id} is out of range")))
}

fn device(header: &tar::Header) -> io::Result<Dev> {
    let number = |n: io::Result<Option<u32>>| n?.ok_or_else(|| io::Error::other("a device without a number"));
    Ok(makedev(number(header.device_major())?, number(header.device_minor())?))
}

fn time(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixStream;

    fn unpack(folder: &Path, target: &str, archive: Vec<u8>) -> Result<u64> {
        unpack_within(folder, target, archive, Bounds::NONE)
    }

    fn unpack_within(folder: &Path, target: &str, archive: Vec<u8>, bounds: Bounds) -> Result<u64> {
        let (agent, mut host) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = host.write_all(&archive);
        });
        let result = import(&Root::open(folder).unwrap(), target, agent.into(), bounds);
        writer.join().unwrap();
        result
    }

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            let field = &mut header.as_old_mut().name[..name.len()];
            field.copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.set_uid(1234);
            header.set_gid(5678);
            header.set_mtime(1_000_000_000);
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if link {
                header.set_link_name_literal(content).unwrap();
            }
            let data = if link { "" } else { content };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn attributes_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let tar = archive(&[
            ("d/", EntryType::Directory, ""),
            ("d/f", EntryType::Regular, "content"),
            ("d/l", EntryType::Symlink, "/etc/passwd"),
            ("d/h", EntryType::Link, "d/f"),
            ("d/p", EntryType::Fifo, ""),
        ]);
        assert_eq!(unpack(folder.path(), "/in", tar).unwrap(), 7);
        let file = std::fs::symlink_metadata(folder.path().join("in/d/f")).unwrap();
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.nlink()),
            (1234, 5678, 0o4755, 1_000_000_000, 2)
        );
        let made = std::fs::symlink_metadata(folder.path().join("in/d")).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o7777, made.mtime()), (1234, 0o4755, 1_000_000_000));
        assert_eq!(std::fs::read_link(folder.path().join("in/d/l")).unwrap(), Path::new("/etc/passwd"));
    }

    #[test]
    fn nothing_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        // Through an existing link: resolved inside the root, where that place does not exist.
        let _ = unpack(folder.path(), "/", archive(&[("out/f", EntryType::Regular, "x")]));
        // Through a link of the archive itself.
        let through = format!("{}/..", outside.path().display());
        let _ = unpack(
            folder.path(),
            "/",
            archive(&[("e", EntryType::Symlink, through.as_str()), ("e/evil", EntryType::Regular, "x")]),
        );
        assert!(unpack(folder.path(), "/", archive(&[("a/../../x", EntryType::Regular, "x")])).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // A link in the place of an entry is replaced.
        std::fs::write(outside.path().join("victim"), "safe").unwrap();
        symlink(outside.path().join("victim"), folder.path().join("v")).unwrap();
        unpack(folder.path(), "/", archive(&[("v", EntryType::Regular, "new")])).unwrap();
        assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "safe");
        assert_eq!(std::fs::read_to_string(folder.path().join("v")).unwrap(), "new");
    }

    #[test]
    fn an_archive_over_its_bounds_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tar = || archive(&[("a", EntryType::Regular, "four"), ("b", EntryType::Regular, "five!")]);
        let unpack = |bytes, entries| unpack_within(folder.path(), "/", tar(), Bounds { bytes, entries });
        assert_eq!(unpack(9, 2).unwrap(), 9);
        assert!(unpack(8, 2).unwrap_err().message.contains("8 bytes"));
        assert!(unpack(9, 1).unwrap_err().message.contains("1 entries"));
    }

    #[test]
    fn a_missing_target_and_a_torn_archive_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            unpack(folder.path(), "/nowhere", Vec::new()).unwrap_err().kind,
            crate::error::Kind::NotFound
        );
        let mut tar = archive(&[("f", EntryType::Regular, "some content")]);
        tar.truncate(515);
        assert!(unpack(folder.path(), "/", tar).is_err());
    }
}
