//! A folder that becomes visible when it is whole. What is written into it comes from a guest: every name is made in a
//! folder that this process made before and holds open, so no link is ever on the way.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tempfile::TempDir;

use super::{OutputError, stale};
use crate::context::MAX_DEPTH;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// How often a link is looked at again when folders elsewhere were moved meanwhile.
const TRIES: u32 = 64;

/// A folder in the making, beside its later place. Dropped, it is removed.
pub(crate) struct Staging {
    target: PathBuf,
    folder: TempDir,
    root: OwnedFd,
    /// Folders on the way down, by their last entry.
    down: Vec<Down>,
    /// All folders with what they get in the end.
    folders: Vec<(String, Attributes)>,
    links: Vec<String>,
}

struct Down {
    path: String,
    folder: OwnedFd,
    last: String,
}

/// What a file gets when its bytes are there.
#[derive(Clone, Copy)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Nanoseconds since 1970.
    pub(crate) modified: i64,
}

impl Staging {
    /// Makes a folder beside `target`, whose parents are made too.
    pub(crate) fn new(target: &Path) -> Result<Self, OutputError> {
        let name = target.display().to_string();
        let failed = |error| OutputError::Write(name.clone(), error);
        // Through links of the user's own, which a rename would replace.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        match fs::read_dir(&target).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(false) => return Err(OutputError::Exists(name)),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(OutputError::Exists(name));
            }
            Err(error) => return Err(failed(error)),
        }
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(failed)?;
        // Mode 0700: nobody else gets in while it is made.
        stale::sweep(parent);
        let folder = tempfile::Builder::new().prefix(stale::PREFIX).tempdir_in(parent).map_err(failed)?;
        let open = || {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(folder.path(), flags, Mode::empty())?;
            stale::hold(&root)?;
            io::Result::Ok((root.try_clone()?, root))
        };
        let (top, root) = open().map_err(failed)?;
        let down = vec![Down { path: String::new(), folder: top, last: String::new() }];
        Ok(Self { target, folder, root, down, folders: Vec::new(), links: Vec::new() })
    }

    /// Goes to the folder of a new entry. Entries come in fsutil's order, so a folder that is not on the way down, or a
    /// name that is not after the last one there, is a lie.
    fn enter(&mut self, path: &str, name: &str) -> Result<&OwnedFd, OutputError> {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let at = self.down.iter().rposition(|down| down.path == folder);
        self.down.truncate(at.map_or(0, |at| at + 1));
        let out_of_order = OutputError::Protocol("an entry out of order, or in a folder that is none");
        let Some(down) = self.down.last_mut().filter(|down| down.last.as_str() < name) else {
            return Err(out_of_order);
        };
        name.clone_into(&mut down.last);
        Ok(&down.folder)
    }

    /// Makes a folder, which the next entries may be in.
    pub(crate) fn make_folder(
        &mut self,
        path: &str,
        name: &str,
        last: Attributes,
    ) -> Result<(), OutputError> {
        let folder = self.enter(path, name)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::mkdirat(folder, name, Mode::RWXU)
            .and_then(|()| rustix::fs::openat(folder, name, flags, Mode::empty()));
        let folder = made.map_err(|error| failed(path, error))?;
        if self.down.len() > MAX_DEPTH {
            return Err(OutputError::Refused(path.into(), "it is in too many folders"));
        }
        self.down.push(Down { path: path.into(), folder, last: String::new() });
        self.folders.push((path.into(), last));
        Ok(())
    }

    /// Makes an empty file.
    pub(crate) fn make_file(&mut self, path: &str, name: &str) -> Result<(), OutputError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(self.enter(path, name)?, name, flags, Mode::RUSR | Mode::WUSR);
        made.map(drop).map_err(|error| failed(path, error))
    }

    /// Makes a link, whose target is looked at in [`Self::publish`].
    pub(crate) fn make_link(&mut self, path: &str, name: &str, target: &str) -> Result<(), OutputError> {
        let made = rustix::fs::symlinkat(target, self.enter(path, name)?, name);
        made.map_err(|error| failed(path, error))?;
        self.links.push(path.into());
        Ok(())
    }

    /// Makes another name of a file that is here already.
    pub(crate) fn make_name(&mut self, path: &str, name: &str, first: &str) -> Result<(), OutputError> {
        let refused = || OutputError::Refused(path.into(), "it is another name of a file that is not there");
        let (folder, file) = first.rsplit_once('/').unwrap_or((".", first));
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = BENEATH | ResolveFlags::NO_SYMLINKS;
        let from =
            rustix::fs::openat2(&self.root, folder, flags, Mode::empty(), resolve).map_err(|_| refused())?;
        let stat = rustix::fs::statat(&from, file, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| refused())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused());
        }
        let made = rustix::fs::linkat(&from, file, self.enter(path, name)?, name, AtFlags::empty());
        made.map_err(|error| failed(path, error))
    }

    /// Opens a file that was made before, for its bytes.
    pub(crate) fn open_file(&self, path: &str) -> Result<File, OutputError> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        file.map(File::from).map_err(|error| failed(path, error))
    }

    /// Looks at all links, gives folders their attributes, and the whole its name.
    pub(crate) fn publish(self) -> Result<(), OutputError> {
        for link in &self.links {
            if leads_out(&self.root, link).map_err(|error| failed(link, error))? {
                return Err(OutputError::Refused(link.clone(), "it is a link that leads out of the output"));
            }
        }
        // The innermost first: a folder that may not be written is not gone through any more.
        let end = || -> Result<(), OutputError> {
            for (path, last) in self.folders.iter().rev() {
                let folder = self.open_folder(path).map_err(|error| failed(path, error))?;
                finish(&folder, *last).map_err(|error| failed(path, error))?;
            }
            let name = self.target.display().to_string();
            rustix::fs::fchmod(&self.root, Mode::from(0o755)).map_err(|error| failed(&name, error))?;
            fs::rename(self.folder.path(), &self.target).map_err(|error| OutputError::Write(name, error))
        };
        let ended = end();
        if ended.is_err() {
            // Else what may not be written can't be removed by everyone.
            for (path, _) in &self.folders {
                let _ = self.open_folder(path).and_then(|folder| rustix::fs::fchmod(&folder, Mode::RWXU));
            }
        }
        ended
    }

    fn open_folder(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), BENEATH | ResolveFlags::NO_SYMLINKS)
    }
}

/// Gives a file or folder its permissions and time.
pub(crate) fn finish(file: impl AsFd, last: Attributes) -> rustix::io::Result<()> {
    let time = Timespec {
        tv_sec: last.modified.div_euclid(1_000_000_000),
        tv_nsec: last.modified.rem_euclid(1_000_000_000),
    };
    rustix::fs::fchmod(&file, Mode::from(last.mode & 0o777))?;
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
}

/// Whether a link's way, through other links too, leaves the folder. The kernel itself follows it, on the finished tree: no
/// reading of the text would find out what links on the way do to a `..`.
fn leads_out(root: &OwnedFd, link: &str) -> rustix::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match rustix::fs::openat2(root, link, flags, Mode::empty(), BENEATH) {
            Err(Errno::XDEV) => return Ok(true),
            // Somebody moved a folder on this machine, and the kernel could not be sure.
            Err(Errno::AGAIN) => {}
            // Nothing there, or no end of links: it leads nowhere.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::AGAIN)
}

fn failed(path: &str, error: Errno) -> OutputError {
    OutputError::Write(path.escape_debug().to_string(), error.into())
}
