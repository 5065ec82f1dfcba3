//! A context entry by entry, in the order that fsutil's receiver demands: names of a folder by their bytes, each folder
//! followed by what is in it.

use std::collections::{HashMap, VecDeque};
use std::{io, vec};

use bollard_buildkit_proto::fsutil::types::Stat;
use rustix::fs::FileType;

use super::disk::Identity;
use super::error::shown;
use super::filter::{Filter, State};
use super::tree::{Folder, Name, Tree};
use super::{ContextError, MAX_DEPTH, MAX_ENTRIES};

/// Entries of a tree that a filter shows. Folders that are not shown themselves come just before the first entry in
/// them. Holds one descriptor and one list of names for each folder on the way down.
pub(crate) struct Walk {
    filter: Filter,
    levels: Vec<Level>,
    ready: VecDeque<Stat>,
    /// First names of files that have several.
    links: HashMap<Identity, String>,
    seen: u32,
}

struct Level {
    folder: Folder,
    names: vec::IntoIter<Name>,
    /// From the root. Parts that are not UTF-8 are replaced, which is what patterns are compared with.
    path: String,
    /// Whether nothing was replaced.
    utf8: bool,
    /// Whether the folder was handed out.
    told: bool,
    state: State,
}

impl Walk {
    /// Starts at the root, which is no entry itself.
    pub(crate) fn new(tree: &Tree, filter: Filter) -> Result<Self, ContextError> {
        let read = |error| ContextError::Read(".".into(), error);
        let folder = tree.open_folder("").map_err(read)?;
        let names = folder.names().map_err(read)?.ok_or(ContextError::TooMany)?.into_iter();
        let root =
            Level { folder, names, path: String::new(), utf8: true, told: true, state: State::default() };
        Ok(Self { filter, levels: vec![root], ready: VecDeque::new(), links: HashMap::new(), seen: 0 })
    }

    /// The next entry, its path set.
    pub(crate) fn step(&mut self) -> Result<Option<Stat>, ContextError> {
        loop {
            if let Some(stat) = self.ready.pop_front() {
                return Ok(Some(stat));
            }
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            match level.names.next() {
                Some(name) => self.visit(&name)?,
                None => drop(self.levels.pop()),
            }
        }
    }

    fn visit(&mut self, name: &Name) -> Result<(), ContextError> {
        self.seen += 1;
        if self.seen > MAX_ENTRIES {
            return Err(ContextError::TooMany);
        }
        let Some(level) = self.levels.last() else { return Ok(()) };
        let text = name.raw.to_string_lossy();
        let path = if level.path.is_empty() { text.into_owned() } else { format!("{}/{text}", level.path) };
        let utf8 = level.utf8 && name.raw.to_str().is_ok();
        // Sockets belong to running processes; a build has no use for them.
        if name.kind == FileType::Socket {
            return Ok(());
        }
        let verdict = self.filter.ask(&path, &level.state);
        if name.kind == FileType::Directory {
            if !verdict.entered {
                return Ok(());
            }
            let opened = level.folder.open(name).and_then(|folder| Ok((folder.names()?, folder)));
            let (names, folder) = match opened {
                Ok((names, folder)) => (names.ok_or(ContextError::TooMany)?, folder),
                Err(error) if gone(&error) => return Ok(()),
                Err(error) if !verdict.shown && error.kind() == io::ErrorKind::PermissionDenied => {
                    return Ok(());
                }
                Err(error) => return Err(ContextError::Read(path, error)),
            };
            if self.levels.len() >= MAX_DEPTH {
                return Err(ContextError::TooDeep(path));
            }
            let (names, state) = (names.into_iter(), verdict.state);
            self.levels.push(Level { folder, names, path, utf8, told: false, state });
            return if verdict.shown { self.tell_folders() } else { Ok(()) };
        }
        if !verdict.shown {
            return Ok(());
        }
        let (stat, identity) = match level.folder.stat(Some(name)) {
            Ok(found) => found,
            // Removed since its folder was read: as if it had been before.
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(ContextError::Read(path, error)),
        };
        self.tell_folders()?;
        let whole = || [path.as_bytes()].concat();
        let Some(mut stat) = stat.filter(|_| utf8) else {
            return Err(ContextError::NotUtf8(if utf8 { shown(&whole()) } else { self.raw(name) }));
        };
        if let Some(identity) = identity {
            match self.links.get(&identity) {
                Some(first) => stat.linkname.clone_from(first),
                None => drop(self.links.insert(identity, path.clone())),
            }
        }
        stat.path = path;
        self.ready.push_back(stat);
        Ok(())
    }

    /// Hands out the folders on the way down that were not yet.
    fn tell_folders(&mut self) -> Result<(), ContextError> {
        for level in &mut self.levels {
            if level.told {
                continue;
            }
            if !level.utf8 {
                return Err(ContextError::NotUtf8(level.path.clone()));
            }
            let read = |error| ContextError::Read(level.path.clone(), error);
            if let (Some(stat), _) = level.folder.stat(None).map_err(read)? {
                self.ready.push_back(Stat { path: level.path.clone(), ..stat });
            }
            level.told = true;
        }
        Ok(())
    }

    /// A name that is not UTF-8 with its folders, for a message.
    fn raw(&self, name: &Name) -> String {
        let folder = self.levels.last().map_or("", |level| level.path.as_str());
        let name = shown(name.raw.as_bytes());
        if folder.is_empty() { name } else { format!("{folder}/{name}") }
    }
}

/// What an entry that is not there any more, or is another kind of thing by now, is answered with.
pub(crate) fn gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::NXIO)
    )
}
