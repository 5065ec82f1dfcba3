//! `ROOT/run`: one folder for each virtual machine.
//!
//! A supervisor holds an exclusive flock(2) on its folder's `lock` for as long as it lives, so a live record with a
//! free lock belongs to a supervisor that died; every command that lists machines first puts such records right.
//! `.lock` of `ROOT/run` is held for the moments in which folders come and go.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::record::{Record, Status};
use crate::name;

const LOCK: &str = "lock";
/// What outlives the machine, until `rm`.
const KEPT: [&str; 5] = [LOCK, "state.json", "log", "log.1", "console.log"];
/// Bytes of a unix socket's path, less that of the door in a machine's folder.
const LONGEST_FOLDER: usize = 107 - "/door".len();

/// All machines below one root.
#[derive(Debug, Clone)]
pub struct Vms {
    run: PathBuf,
}

/// One machine's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Vms {
    /// The machines of `run`, a folder that need not exist yet.
    pub fn new(run: PathBuf) -> Self {
        Self { run }
    }

    /// The machines beside one of them.
    pub fn around(folder: &Folder) -> Self {
        Self { run: folder.path.parent().map(Path::to_owned).unwrap_or_default() }
    }

    /// Creates the folder of a new machine with `record` in it, and takes its lock.
    ///
    /// # Errors
    /// When the name is taken, or sockets would not fit below the folder.
    pub fn create(&self, record: &Record) -> Result<(Folder, File)> {
        name::valid(&record.name).map_err(anyhow::Error::msg)?;
        let path = self.run.join(&record.name);
        if path.as_os_str().len() > LONGEST_FOLDER {
            bail!(
                "the folder {} is too long for the sockets in it (at most {LONGEST_FOLDER} bytes): use a shorter --root or --name",
                path.display()
            );
        }
        DirBuilder::new().recursive(true).mode(0o711).create(&self.run).with_context(|| {
            format!("cannot create {}: choose a writable folder with --root", self.run.display())
        })?;
        let _guard = self.guard()?;
        let folder = Folder { path };
        folder.sweep()?;
        match DirBuilder::new().mode(0o700).create(&folder.path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let live = folder.record()?.is_some_and(|record| record.status.is_live());
                let way = if live {
                    "stop it, or choose another --name"
                } else {
                    "`cloister rm` it, or choose another --name"
                };
                bail!("the name {} is in use by a microVM: {way}", record.name);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create {}", folder.path.display()));
            }
        }
        let lock = folder.open_lock()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("cannot lock {}", folder.path.display()))?;
        record.save(&folder.path)?;
        Ok((folder, lock))
    }

    /// Every machine with its record, oldest first, after putting right those whose supervisor died.
    pub fn list(&self) -> Result<Vec<(Folder, Record)>> {
        let entries = match fs::read_dir(&self.run) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", self.run.display())),
        };
        let _guard = self.guard()?;
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", self.run.display()))?;
            let valid = entry.file_name().to_str().is_some_and(|name| name::valid(name).is_ok());
            if !valid || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let folder = Folder { path: entry.path() };
            folder.sweep()?;
            if let Some(record) = folder.record()? {
                all.push((folder, record));
            }
        }
        all.sort_by_key(|(_, record)| record.created);
        Ok(all)
    }

    /// The machine of a name.
    pub fn find(&self, name: &str) -> Result<(Folder, Record)> {
        name::valid(name).map_err(anyhow::Error::msg)?;
        let folder = Folder { path: self.run.join(name) };
        if folder.path.is_dir() {
            let _guard = self.guard()?;
            folder.sweep()?;
        }
        match folder.record()? {
            Some(record) => Ok((folder, record)),
            None => bail!("there is no microVM named {name}; `cloister ps -a` lists them"),
        }
    }

    /// Removes the folder of a machine that has ended.
    pub fn remove(&self, folder: &Folder) -> Result<()> {
        let _guard = self.guard()?;
        folder.remove()
    }

    /// Puts the record of a machine right whose supervisor died, by the one who still holds its lock.
    pub fn abandon(&self, folder: &Folder, reason: &str) -> Result<()> {
        let _guard = self.guard()?;
        match folder.record()? {
            Some(mut record) if record.started.is_some() && !record.remove => {
                if record.status.is_live() {
                    record.abandon(reason);
                    record.save(&folder.path)?;
                }
                folder.strip(false)
            }
            _ => folder.remove(),
        }
    }

    fn guard(&self) -> Result<File> {
        let path = self.run.join(".lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

impl Folder {
    /// The folder at a path that [`Vms::create`] made.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record, when there is one.
    pub fn record(&self) -> Result<Option<Record>> {
        Record::load(&self.path)
    }

    /// Removes what only a live machine needs, and everything when the record says so.
    pub fn strip(&self, remove: bool) -> Result<()> {
        if remove {
            return self.remove();
        }
        for entry in
            fs::read_dir(&self.path).with_context(|| format!("cannot list {}", self.path.display()))?
        {
            let entry = entry.with_context(|| format!("cannot list {}", self.path.display()))?;
            if KEPT.iter().any(|kept| entry.file_name().to_str() == Some(kept)) {
                continue;
            }
            let path = entry.path();
            let gone = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            gone.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether a supervisor (or the command that starts one) holds the lock.
    pub fn is_held(&self) -> Result<bool> {
        let lock = self.open_lock()?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", self.path.display())),
        }
    }

    /// Puts a record right whose supervisor died. The caller holds the guard of all machines.
    fn sweep(&self) -> Result<()> {
        match self.is_held() {
            Ok(false) => {}
            Ok(true) => return Ok(()),
            Err(_) if !self.path.is_dir() => return Ok(()),
            Err(error) => return Err(error),
        }
        // A supervisor that ended while the lock was being looked at has written its last record by now.
        let Some(mut record) = self.record().ok().flatten() else {
            return self.remove();
        };
        if record.status.is_live() {
            record.abandon("its supervisor was killed");
            record.save(&self.path)?;
        }
        self.strip(record.remove)
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn open_lock(&self) -> Result<File> {
        let path = self.path.join(LOCK);
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Record {
    /// Marks a machine that ended before its command did.
    pub fn abandon(&mut self, reason: &str) {
        self.status = Status::Failed;
        self.finished = Some(Timestamp::now());
        self.exit_code = Some(crate::exit::FAILED);
        self.reason = Some(reason.to_owned());
        self.dialer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> (Self, Vms) {
            let path = std::env::temp_dir().join(format!("cloister-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            (Self(path.clone()), Vms::new(path))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let (_scratch, vms) = Scratch::new("once");
        let (_folder, _lock) = vms.create(&record("web", Status::Starting)).unwrap();
        let error = vms.create(&record("web", Status::Starting)).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
    }

    #[test]
    fn a_held_machine_is_left_alone() {
        let (_scratch, vms) = Scratch::new("held");
        let (folder, _lock) = vms.create(&record("web", Status::Running)).unwrap();
        fs::write(folder.path().join("door"), "").unwrap();
        assert_eq!(vms.list().unwrap()[0].1.status, Status::Running);
        assert!(folder.path().join("door").exists());
    }

    #[test]
    fn a_machine_whose_supervisor_died_is_marked_and_stripped() {
        let (_scratch, vms) = Scratch::new("died");
        let (folder, lock) = vms.create(&record("web", Status::Running)).unwrap();
        fs::write(folder.path().join("door"), "").unwrap();
        fs::write(folder.path().join("log"), "kept").unwrap();
        drop(lock);
        let (_, found) = vms.find("web").unwrap();
        assert_eq!((found.status, found.exit_code), (Status::Failed, Some(125)));
        assert!(!folder.path().join("door").exists() && folder.path().join("log").exists());
        // Its name is free again only after `rm`.
        assert!(vms.create(&record("web", Status::Starting)).is_err());
        vms.remove(&folder).unwrap();
        vms.create(&record("web", Status::Starting)).unwrap();
    }

    #[test]
    fn a_dead_machine_that_was_to_be_removed_leaves_nothing() {
        let (_scratch, vms) = Scratch::new("gone");
        let mut wanted = record("web", Status::Running);
        wanted.remove = true;
        let (folder, lock) = vms.create(&wanted).unwrap();
        drop(lock);
        assert!(vms.list().unwrap().is_empty());
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_folder_without_a_record_is_the_rest_of_a_crash() {
        let (_scratch, vms) = Scratch::new("crash");
        fs::create_dir_all(vms.run.join("web")).unwrap();
        assert!(vms.find("web").is_err());
        assert!(!vms.run.join("web").exists());
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused_before_anything_exists() {
        let vms = Vms::new(PathBuf::from(format!("/tmp/{}", "x".repeat(110))));
        let error = vms.create(&record("web", Status::Starting)).unwrap_err().to_string();
        assert!(error.contains("shorter --root"), "{error}");
    }
}
