//! Waiting for news of a machine: something written in its folder, or its supervisor's end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Folder, Record};

/// Longest wait without news: a look that nothing asked for costs little, and covers a supervisor that cannot be watched.
const LONGEST: Duration = Duration::from_secs(2);

/// Watches one machine.
#[derive(Debug)]
pub struct Follow {
    changes: OwnedFd,
    /// Becomes readable at its end; `None` when it has none (yet) or it is gone already.
    supervisor: Option<OwnedFd>,
}

impl Follow {
    /// Starts to watch; what was written before has to be read after this call, or it is missed.
    ///
    /// # Errors
    /// The system gives no watch, for example because the user has too many.
    pub fn new(folder: &Folder, record: &Record) -> io::Result<Self> {
        Self::of(folder.path(), record.pid, || record.supervisor_lives())
    }

    /// The same for any folder and the process that owns it; `lives` says whether the id is still that process's.
    ///
    /// # Errors
    /// As [`Follow::new`].
    pub fn of(folder: &Path, pid: Option<u32>, lives: impl FnOnce() -> bool) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // Looking whether the lock is held opens and closes a file, so neither may count as news.
        let news = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&changes, folder, news)?;
        let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let supervisor = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Looked at after the descriptor names the process for good: the id may have changed hands before.
        Ok(Self { changes, supervisor: supervisor.filter(|_| lives()) })
    }

    /// Returns at news, or after two seconds without.
    ///
    /// # Errors
    /// Polling failed.
    pub fn wait(&mut self) -> io::Result<()> {
        let mut watched = vec![PollFd::new(&self.changes, PollFlags::IN)];
        watched.extend(self.supervisor.iter().map(|supervisor| PollFd::new(supervisor, PollFlags::IN)));
        let longest = Timespec { tv_sec: LONGEST.as_secs().cast_signed(), tv_nsec: 0 };
        match poll(&mut watched, Some(&longest)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // An end is news once.
        if watched.get(1).is_some_and(|supervisor| !supervisor.revents().is_empty()) {
            self.supervisor = None;
        }
        // What is new does not matter, only that it is.
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.changes, &mut events) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Status;
    use crate::vm::record::process_start;
    use crate::vm::record::tests::record;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    fn waits(follow: &mut Follow) -> Duration {
        let begun = Instant::now();
        follow.wait().unwrap();
        begun.elapsed()
    }

    #[test]
    fn writing_and_the_end_of_the_supervisor_are_news_and_looking_is_not() {
        let dir = std::env::temp_dir().join(format!("cloister-follow-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let folder = Folder::at(dir.clone());
        let mut supervisor = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut record = record("x", Status::Running);
        record.pid = Some(supervisor.id());
        record.pid_started = process_start(supervisor.id());
        let mut follow = Follow::new(&folder, &record).unwrap();
        let path = dir.join("log");
        std::fs::write(&path, "1").unwrap();
        assert!(waits(&mut follow) < LONGEST / 2);
        std::fs::rename(&path, dir.join("log.1")).unwrap();
        assert!(waits(&mut follow) < LONGEST / 2);
        std::fs::read(dir.join("log.1")).unwrap();
        assert!(waits(&mut follow) >= LONGEST);
        drop(supervisor.stdin.take());
        assert!(waits(&mut follow) < LONGEST / 2);
        supervisor.wait().unwrap();
        assert!(waits(&mut follow) >= LONGEST, "an end is news once");
        let gone = Follow::new(&folder, &record).unwrap();
        assert!(gone.supervisor.is_none());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
