//! Noticing that copied content changed on the host, and copying it again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_sandbox::Agent;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::files::{self, Content};

/// Changes come in bursts; the copy is made when a burst is over.
const BURST: Duration = Duration::from_millis(20);
/// How long to wait before a failed copy is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Watches one copied volume.
pub struct Watch {
    notices: AsyncFd<OwnedFd>,
    paths: Vec<PathBuf>,
    flags: WatchFlags,
}

impl Watch {
    /// Begins to collect notices, before the content is read for the first time.
    pub fn new(content: &Content) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let changes =
            WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let entries =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let (paths, flags) = match content {
            Content::Folder(folder) => (vec![folder.clone()], entries),
            Content::Files(paths) => (paths.clone(), changes),
        };
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays open as long as it.
        let notices = unsafe { AsyncFd::register(fd) }?;
        let watch = Self { notices, paths, flags };
        watch.arm();
        Ok(watch)
    }

    /// A path that was replaced is another file; watching the same one twice is no error.
    fn arm(&self) {
        for path in &self.paths {
            if let Err(error) = inotify::add_watch(self.notices.get_ref(), path, self.flags) {
                tracing::debug!(path = %path.display(), %error, "cannot watch");
            }
        }
    }

    /// Copies the content into the volume `id` whenever it has changed. `packed` is what the volume holds.
    pub async fn follow(self, agent: Agent, id: String, content: Content, mut packed: Vec<u8>) {
        loop {
            if self.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(BURST).await;
            self.arm();
            let reading = content.clone();
            let fresh = tokio::task::spawn_blocking(move || files::pack(&reading)).await;
            match fresh {
                Ok(Ok(fresh)) if fresh != packed => match agent.sync_volume(&id, &fresh).await {
                    Ok(()) => {
                        tracing::debug!(volume = id, "changed content copied");
                        packed = fresh;
                    }
                    Err(error) => {
                        tracing::warn!(volume = id, %error, "cannot copy changed content");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(volume = id, "changed content is not read: {error:#}"),
                Err(error) => tracing::warn!(volume = id, %error, "changed content is not read"),
            }
        }
    }

    /// Waits for a notice and takes all there are.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.notices.readable().await?;
            let mut space = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(self.notices.get_ref(), &mut space);
            let mut any = false;
            loop {
                match reader.next() {
                    Ok(event) => any |= !event.events().contains(ReadFlags::IGNORED),
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}

/// Whether a folder is a tmpfs of its own, and its size in bytes then.
pub fn tmpfs_size(path: &Path) -> io::Result<Option<u64>> {
    use std::os::unix::fs::MetadataExt;
    /// `TMPFS_MAGIC` of linux/magic.h.
    const TMPFS: u64 = 0x0102_1994;
    let stat = rustix::fs::statfs(path)?;
    let own = std::fs::metadata(path)?.dev();
    let above = path.parent().map(std::fs::metadata).transpose()?.map(|meta| meta.dev());
    if u64::try_from(stat.f_type).unwrap_or_default() != TMPFS || above == Some(own) {
        return Ok(None);
    }
    Ok(Some(stat.f_blocks.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(4096))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_link_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new(&Content::Folder(folder.path().to_owned())).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("..new")).unwrap();
        std::fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
        tokio::time::timeout(Duration::from_secs(2), watch.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_file_replaced_by_another_is_still_watched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "1").unwrap();
        let watch = Watch::new(&Content::Files(vec![path.clone()])).unwrap();
        std::fs::write(folder.path().join("g"), "2").unwrap();
        std::fs::rename(folder.path().join("g"), &path).unwrap();
        let limit = Duration::from_secs(2);
        tokio::time::timeout(limit, watch.changed()).await.unwrap().unwrap();
        watch.arm();
        std::fs::write(&path, "3").unwrap();
        tokio::time::timeout(limit, watch.changed()).await.unwrap().unwrap();
    }
}
