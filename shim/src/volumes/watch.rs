//! Noticing that copied content changed on the host, and copying it again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::files::{self, Content};

/// Changes come in bursts; the copy is made when a burst is over.
const BURST: Duration = Duration::from_millis(20);
/// How long to wait before a failed copy is tried again; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a failed copy is tried again before only a further change can be the reason to: about ten minutes.
const RETRIES: u32 = 15;

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

    /// Calls `copy` with the packed content whenever it has changed, and again after a failure. `packed` is what the copy
    /// holds now.
    pub async fn follow<C, F>(self, content: Content, mut packed: Arc<Vec<u8>>, copy: C)
    where
        C: Fn(Arc<Vec<u8>>) -> F,
        F: Future<Output = Result<()>>,
    {
        let mut failures = 0;
        let mut changed = self.changed().await;
        while changed.is_ok() {
            tokio::time::sleep(BURST).await;
            self.arm();
            changed = match refresh(&content, &mut packed, &copy).await {
                Ok(()) => {
                    failures = 0;
                    self.changed().await
                }
                Err(error) if failures < RETRIES => {
                    let pause = FIRST_PAUSE.saturating_mul(1 << failures).min(LONGEST_PAUSE);
                    failures += 1;
                    tracing::warn!(?content, failures, "changed content is not copied yet: {error:#}");
                    // A further change is a reason to try at once.
                    tokio::time::timeout(pause, self.changed()).await.unwrap_or(Ok(()))
                }
                Err(error) => {
                    failures = 0;
                    tracing::error!(
                        ?content,
                        "changed content is not copied before it changes again: {error:#}"
                    );
                    self.changed().await
                }
            };
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

/// Copies the content as it is now, unless the copy holds it.
async fn refresh<F>(
    content: &Content,
    packed: &mut Arc<Vec<u8>>,
    copy: &impl Fn(Arc<Vec<u8>>) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let reading = content.clone();
    let fresh = Arc::new(tokio::task::spawn_blocking(move || files::pack(&reading)).await??);
    if fresh != *packed {
        copy(Arc::clone(&fresh)).await?;
        tracing::debug!(?content, "changed content copied");
        *packed = fresh;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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

    /// A copy on this host: what the guest does with the bytes is tested with a guest.
    async fn copy_to(path: &Path, bytes: &[u8]) -> Result<()> {
        Ok(tokio::fs::write(path, bytes).await?)
    }

    #[tokio::test]
    async fn a_copy_that_failed_is_made_later_without_a_further_change() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("f");
        std::fs::write(&source, "old").unwrap();
        let content = Content::Files(vec![source.clone()]);
        let packed = Arc::new(files::pack(&content).unwrap());
        let watch = Watch::new(&content).unwrap();
        let absent = folder.path().join("absent");
        let target = absent.join("copy");
        let (tried, mut tries) = tokio::sync::mpsc::unbounded_channel();
        let copying = target.clone();
        let follow = watch.follow(content.clone(), packed, move |bytes| {
            let (target, tried) = (copying.clone(), tried.clone());
            async move {
                let outcome = copy_to(&target, &bytes).await;
                tried.send(outcome.is_ok())?;
                outcome
            }
        });
        let following = tokio::spawn(follow);
        std::fs::write(&source, "new").unwrap();
        let limit = Duration::from_secs(10);
        assert!(!tokio::time::timeout(limit, tries.recv()).await.unwrap().unwrap());
        std::fs::create_dir(&absent).unwrap();
        assert!(tokio::time::timeout(limit, tries.recv()).await.unwrap().unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), files::pack(&content).unwrap());
        following.abort();
    }
}
