//! A tar stream from a guest as files of this machine. The guest writes every byte of it, so nothing in it decides
//! where something lands: entries are made in a fresh folder, below descriptors, through no link, and the finished
//! file or folder is then renamed to where the user wants it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, linkat, mkdirat, open, openat2, symlinkat};
use tar::{Archive, Entry, EntryType};

/// Deepest path of an entry.
const DEPTH: usize = 128;
/// Most entries of one copy: each costs an inode here.
const ENTRIES: u64 = 10_000_000;

/// Receives one file or folder: into `destination` when that is a folder, else as `destination`.
pub fn unpack(stream: impl Into<OwnedFd>, destination: &Path) -> io::Result<()> {
    let stream = UnixStream::from(stream.into());
    let (parent, rename) = if destination.is_dir() {
        (destination.to_owned(), None)
    } else {
        let name = destination.file_name().ok_or_else(|| io::Error::other("the destination has no name"))?;
        let parent =
            destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (parent.to_owned(), Some(name.to_owned()))
    };
    let work = Work::create(&parent)?;
    let name = receive(stream, &work.0)?;
    let from = work.0.join(&name);
    let to = parent.join(rename.as_deref().unwrap_or(name.as_os_str()));
    fs::rename(&from, &to).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", to.display())))
}

/// A private folder beside the destination that goes whatever happens.
struct Work(PathBuf);

impl Work {
    fn create(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!(".cloister-cp-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Nothing is lost with what is left of it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Unpacks a stream in `folder`; returns the one name that all entries are below.
fn receive(stream: impl Read, folder: &Path) -> io::Result<PathBuf> {
    let base = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut archive = Archive::new(BufReader::with_capacity(256 << 10, stream));
    let mut top: Option<PathBuf> = None;
    let mut modes = Vec::new();
    for (number, entry) in (0u64..).zip(archive.entries()?) {
        if number >= ENTRIES {
            return Err(io::Error::other("the microVM sends too many files"));
        }
        let mut entry = entry?;
        let path = clean(&entry.path()?)?;
        let first: PathBuf = path.components().take(1).collect();
        if *top.get_or_insert_with(|| first.clone()) != first {
            return Err(io::Error::other("the microVM sends more than what was asked for"));
        }
        make(&base, &path, &mut entry)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if entry.header().entry_type().is_dir() {
            modes.push((path, entry.header().mode()? & 0o777));
        }
    }
    // Innermost first, so that a folder without write permission can be filled before.
    for (path, mode) in modes.into_iter().rev() {
        let folder = beneath(&base, &path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode | 0o700))?;
    }
    top.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the microVM sent nothing"))
}

fn make(base: &OwnedFd, path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            (beneath(base, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name)
        }
        (_, Some(name)) => (base.try_clone()?, name),
        _ => return Err(io::Error::other("an entry without a name")),
    };
    match entry.header().entry_type() {
        EntryType::Directory => Ok(mkdirat(&parent, name, Mode::from_raw_mode(0o700))?),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mode = Mode::from_raw_mode(entry.header().mode()? & 0o777);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut file = File::from(beneath(&parent, Path::new(name), flags, Mode::from_raw_mode(0o600))?);
            io::copy(entry, &mut file)?;
            rustix::fs::fchmod(&file, mode)?;
            let time = std::time::UNIX_EPOCH
                + std::time::Duration::from_secs(entry.header().mtime()?.min(u64::from(u32::MAX)));
            file.set_modified(time)
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
            Ok(symlinkat(target.as_ref(), &parent, name)?)
        }
        EntryType::Link => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
            let target = clean(&target)?;
            let (Some(folder), Some(last)) = (target.parent(), target.file_name()) else {
                return Err(io::Error::other("a link without a target"));
            };
            let folder = if folder.as_os_str().is_empty() {
                base.try_clone()?
            } else {
                beneath(base, folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?
            };
            Ok(linkat(&folder, last, &parent, name, AtFlags::empty())?)
        }
        kind => {
            tracing::warn!(path = %path.display(), "not copied: {kind:?} has no meaning on this machine");
            Ok(())
        }
    }
}

/// Opens below a folder without following any link, wherever it stands in the path.
fn beneath(base: &OwnedFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(base, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve)?)
}

/// A relative path of plain names only.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => {
                return Err(io::Error::other(format!(
                    "the microVM sends the name {path:?}, which leads elsewhere"
                )));
            }
        }
    }
    if clean.as_os_str().is_empty() || clean.components().count() > DEPTH {
        return Err(io::Error::other("the microVM sends an empty or too deep name"));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-unpack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// One entry with its names as given, however bad.
    fn entry(kind: EntryType, name: &str, link: &str, data: &[u8]) -> (Header, Vec<u8>) {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        (header, data.to_vec())
    }

    fn archive(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (header, data) in entries {
            builder.append(header, data.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn files_folders_and_links_arrive() {
        let dir = scratch("good");
        let tar = archive(&[
            entry(EntryType::Directory, "d/", "", b""),
            entry(EntryType::Regular, "d/f", "", b"hello"),
            entry(EntryType::Symlink, "d/s", "/etc/passwd", b""),
            entry(EntryType::Link, "d/h", "d/f", b""),
        ]);
        assert_eq!(receive(tar.as_slice(), &dir).unwrap(), Path::new("d"));
        assert_eq!(fs::read(dir.join("d/h")).unwrap(), b"hello");
        assert_eq!(fs::read_link(dir.join("d/s")).unwrap(), Path::new("/etc/passwd"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn no_entry_leads_out_of_the_folder() {
        let dir = scratch("bad");
        let outside = scratch("outside");
        let link = outside.to_string_lossy().into_owned();
        let attacks = [
            vec![entry(EntryType::Regular, "../x", "", b"x")],
            vec![entry(EntryType::Regular, "/x", "", b"x")],
            vec![entry(EntryType::Symlink, "d", &link, b""), entry(EntryType::Regular, "d/x", "", b"x")],
            vec![
                entry(EntryType::Symlink, "f", &format!("{link}/x"), b""),
                entry(EntryType::Regular, "f", "", b"x"),
            ],
            vec![entry(EntryType::Link, "h", "../secret", b"")],
            vec![entry(EntryType::Link, "h", "/etc/passwd", b"")],
            vec![entry(EntryType::Regular, "a", "", b""), entry(EntryType::Regular, "b", "", b"")],
        ];
        for (number, attack) in attacks.iter().enumerate() {
            let inside = dir.join(number.to_string());
            fs::create_dir(&inside).unwrap();
            assert!(receive(archive(attack).as_slice(), &inside).is_err(), "attack {number}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
        fs::remove_dir_all(outside).unwrap();
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let dir = scratch("nothing");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(unpack(ours, &dir.join("x")).is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
