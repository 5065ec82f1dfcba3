//! Uploaded sources, kept apart from what is on its way: a build's next attempt, or the next process, reads them again.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a failed build's upload is kept for another attempt.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A folder for each build, by its uid.
#[derive(Debug, Clone)]
pub struct Uploads(PathBuf);

impl Uploads {
    /// Those below this node's folder.
    pub fn new(root: &Path) -> Self {
        Self(root.join("builds/uploads"))
    }

    /// The folder of a build, which only root can enter.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn folder(&self, uid: &str) -> io::Result<PathBuf> {
        let folder = self.0.join(uid);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// Removes what a build that has succeeded does not need any more.
    pub fn forget(&self, uid: &str) {
        // What stays is removed when its time is over.
        let _ = fs::remove_dir_all(self.0.join(uid));
    }

    /// Removes what nobody came back for.
    pub fn tidy(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let changed = entry.metadata().and_then(|data| data.modified());
            if changed.is_ok_and(|time| time.elapsed().unwrap_or_default() > KEPT) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn uploads_go_with_success_or_with_time() {
        let root = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(root.path());
        for uid in ["old", "new", "built"] {
            fs::write(uploads.folder(uid).unwrap().join("upload-x"), "").unwrap();
        }
        let old = fs::File::open(uploads.folder("old").unwrap()).unwrap();
        old.set_modified(SystemTime::now() - 2 * KEPT).unwrap();
        uploads.tidy();
        uploads.forget("built");
        let left: Vec<_> =
            fs::read_dir(&uploads.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["new"]);
    }
}
