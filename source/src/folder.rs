//! A folder that is filled with what an archive says. Every name is made in a folder that was opened beneath this one
//! through no link, so that nothing leads out of it, whatever the archive holds.

mod names;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::names::Attributes;
use self::names::{BENEATH, FOLDER, clear, finish, kind, remove, times};
use crate::archive::local;
use crate::{Error, Limits, Result};

/// Most folders within each other: a context takes no more.
const MAX_DEPTH: usize = cloister_build::context::MAX_DEPTH;
/// Longest part of a path, and longest target of a link, in bytes.
const MAX_PART: usize = 255;
const MAX_TARGET: usize = 4095;
/// Bytes of the names of all folders, which are kept until the end.
const MAX_NAMES: usize = 64 << 20;
/// Permissions of a folder that no entry describes.
const IMPLIED: u32 = 0o755;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where an entry belongs.
#[derive(Debug)]
pub(crate) struct Place {
    /// The whole path, its parts joined by single slashes.
    path: Vec<u8>,
    /// Where its last part begins.
    name: usize,
}

impl Place {
    fn folder(&self) -> &[u8] {
        &self.path[..self.name.saturating_sub(1)]
    }

    fn name(&self) -> &[u8] {
        &self.path[self.name..]
    }
}

/// A folder on its way.
#[derive(Debug)]
pub(crate) struct Folder {
    what: String,
    root: OwnedFd,
    limits: Limits,
    entries: u64,
    bytes: u64,
    names: usize,
    /// Folders with what they get in the end.
    folders: Vec<(Vec<u8>, Attributes)>,
}

impl Folder {
    /// Fills the empty folder `path`. `what` is what messages call the archive.
    pub(crate) fn new(what: &str, path: &Path, limits: &Limits) -> Result<Self> {
        let root = rustix::fs::open(path, FOLDER, Mode::empty())
            .map_err(|error| local("opening a folder", &error.into()))?;
        let what = what.to_owned();
        Ok(Self { what, root, limits: *limits, entries: 0, bytes: 0, names: 0, folders: Vec::new() })
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Messages call it this from now on.
    pub(crate) fn call(&mut self, what: &str) {
        what.clone_into(&mut self.what);
    }

    /// Looks at a path; `None` is the folder itself. Counts.
    pub(crate) fn place(&mut self, path: &[u8]) -> Result<Option<Place>> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(Error::invalid(format!(
                "{} has more than {limit} files, folders and links",
                self.what
            )));
        }
        let refuse = |why| Error::invalid(format!("{}: \"{}\": {why}", self.what, path.escape_ascii()));
        let parts: Vec<_> =
            path.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.'])).collect();
        if parts.contains(&&b".."[..]) {
            return Err(refuse("its path has .. in it"));
        }
        if parts.iter().any(|part| part.len() > MAX_PART) || path.contains(&0) {
            return Err(refuse("its name is too long, or has a zero byte"));
        }
        if parts.len() > MAX_DEPTH {
            return Err(refuse("it is in too many folders"));
        }
        let Some(last) = parts.last() else { return Ok(None) };
        let path = parts.join(&b'/');
        let name = path.len() - last.len();
        self.names += path.len();
        Ok(Some(Place { path, name }))
    }

    /// Does what a name of a layer that begins with `.wh.` says; false when it is none.
    pub(crate) fn whiteout(&mut self, place: &Place) -> Result<bool> {
        let Some(hidden) = place.name().strip_prefix(WHITEOUT) else { return Ok(false) };
        let Some(folder) = self.find(place.folder()).map_err(|error| self.failed(place, error))? else {
            return Ok(true);
        };
        let removed = if place.name() == OPAQUE {
            clear(&folder)
        } else if hidden.starts_with(WHITEOUT) || matches!(hidden, b"" | b"." | b"..") {
            Ok(())
        } else {
            remove(&folder, hidden)
        };
        removed.map(|()| true).map_err(|error| self.failed(place, error))
    }

    /// Makes a folder, or gives the one that is there other attributes.
    pub(crate) fn make_folder(&mut self, place: &Place, last: &Attributes) -> Result<()> {
        let parent = self.parent(place)?;
        let made = match kind(&parent, place.name()) {
            Ok(Some(FileType::Directory)) => Ok(()),
            Ok(Some(_)) => remove(&parent, place.name())
                .and_then(|()| rustix::fs::mkdirat(&parent, place.name(), Mode::RWXU)),
            Ok(None) => rustix::fs::mkdirat(&parent, place.name(), Mode::RWXU),
            Err(error) => Err(error),
        };
        made.map_err(|error| self.failed(place, error))?;
        self.remember(place.path.clone(), last.clone())
    }

    /// Makes a link. Where it leads does not matter: nothing here follows it.
    pub(crate) fn make_link(&mut self, place: &Place, target: &[u8], last: &Attributes) -> Result<()> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(self.refused(place, "it is a link to what can't be a path"));
        }
        let parent = self.parent(place)?;
        let name = place.name();
        let made = remove(&parent, name)
            .and_then(|()| rustix::fs::symlinkat(target, &parent, name))
            .and_then(|()| rustix::fs::utimensat(&parent, name, &times(last), AtFlags::SYMLINK_NOFOLLOW));
        made.map_err(|error| self.failed(place, error))
    }

    /// Makes another name of a file that is here already.
    pub(crate) fn make_name(&mut self, place: &Place, target: &[u8]) -> Result<()> {
        const WHY: &str = "it is another name of a file that is not there";
        let missing = || self.refused(place, WHY);
        let parts: Vec<_> =
            target.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.'])).collect();
        let Some((name, folders)) = parts.split_last() else { return Err(missing()) };
        let from = self.find(&folders.join(&b'/')).ok().flatten().ok_or_else(missing)?;
        if !matches!(kind(&from, name), Ok(Some(FileType::RegularFile))) {
            return Err(self.refused(place, WHY));
        }
        let parent = self.parent(place)?;
        if place.path == parts.join(&b'/') {
            return Ok(());
        }
        let made = remove(&parent, place.name())
            .and_then(|()| rustix::fs::linkat(&from, *name, &parent, place.name(), AtFlags::empty()));
        made.map_err(|error| self.failed(place, error))
    }

    /// Makes an empty file that will have `size` bytes.
    pub(crate) fn make_file(&mut self, place: &Place, size: u64) -> Result<File> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(Error::invalid(format!(
                "{} has more than {} bytes of files",
                self.what, self.limits.bytes
            )));
        }
        let parent = self.parent(place)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = remove(&parent, place.name())
            .and_then(|()| rustix::fs::openat(&parent, place.name(), flags, Mode::RUSR | Mode::WUSR));
        made.map(File::from).map_err(|error| self.failed(place, error))
    }

    /// Gives a file that is whole its attributes.
    pub(crate) fn finish(&self, place: &Place, file: &File, last: &Attributes) -> Result<()> {
        finish(file, last).map_err(|error| self.failed(place, error))
    }

    /// Gives folders their attributes, the innermost first.
    pub(crate) fn end(self) -> Result<()> {
        for (path, last) in self.folders.iter().rev() {
            let folder = match self.find(path) {
                // Replaced or taken away by a later entry.
                Ok(None) | Err(Errno::NOTDIR | Errno::LOOP) => continue,
                found => found,
            };
            let ended = folder.and_then(|folder| folder.map_or(Ok(()), |folder| finish(&folder, last)));
            ended.map_err(|error| local("ending a folder", &error.into()))?;
        }
        Ok(())
    }

    pub(crate) fn refused(&self, place: &Place, why: &str) -> Error {
        Error::invalid(format!("{}: \"{}\": {why}", self.what, place.path.escape_ascii()))
    }

    fn failed(&self, place: &Place, error: Errno) -> Error {
        match error {
            Errno::LOOP | Errno::NOTDIR => self.refused(place, "its path leads through a link or a file"),
            Errno::NAMETOOLONG | Errno::INVAL => self.refused(place, "its name can't be one"),
            error => {
                local(&format!("unpacking {}: \"{}\"", self.what, place.path.escape_ascii()), &error.into())
            }
        }
    }

    fn remember(&mut self, path: Vec<u8>, last: Attributes) -> Result<()> {
        let attributes: usize = last.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.names += path.len() + attributes;
        if self.names > MAX_NAMES {
            return Err(Error::invalid(format!("{} has names of more than {MAX_NAMES} bytes", self.what)));
        }
        self.folders.push((path, last));
        Ok(())
    }

    /// Opens a folder; `None` when it is not there.
    fn find(&self, path: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
        let path = if path.is_empty() { b"." } else { path };
        match rustix::fs::openat2(&self.root, path, FOLDER, Mode::empty(), BENEATH) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the folder that a place is in; what is missing on the way is made.
    fn parent(&mut self, place: &Place) -> Result<OwnedFd> {
        let path = place.folder();
        if let Some(found) = self.find(path).map_err(|error| self.failed(place, error))? {
            return Ok(found);
        }
        let open = |at: &OwnedFd, part: &[u8]| rustix::fs::openat2(at, part, FOLDER, Mode::empty(), BENEATH);
        let mut folder = open(&self.root, b".").map_err(|error| self.failed(place, error))?;
        let mut end = 0;
        for part in path.split(|byte| *byte == b'/') {
            end += part.len();
            match rustix::fs::mkdirat(&folder, part, Mode::RWXU) {
                Ok(()) => {
                    let last = Attributes { mode: IMPLIED, ..Attributes::default() };
                    self.remember(path[..end].to_vec(), last)?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed(place, error)),
            }
            end += 1;
            folder = open(&folder, part).map_err(|error| self.failed(place, error))?;
        }
        Ok(folder)
    }
}
