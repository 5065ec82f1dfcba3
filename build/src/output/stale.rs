//! What is in the making has a name of its own beside its place, and a lock for as long as its process lives. What a killed
//! process left is removed by the next output that goes there.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How such names begin.
pub(super) const PREFIX: &str = ".cloister-output-";
/// A new one may not be locked yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Says that a file or folder in the making is this process's.
pub(super) fn hold(file: impl AsFd) -> std::io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

/// Removes what nobody holds. What can't be read or removed is left alone.
pub(super) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let Some(kind) = entry.file_type().ok().filter(|kind| ours && (kind.is_file() || kind.is_dir()))
        else {
            continue;
        };
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        let age =
            file.metadata().and_then(|data| data.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > YOUNG) && hold(&file).is_ok() {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(3600);
        let make = |name: &str, time| {
            let path = place.path().join(name);
            fs::create_dir_all(path.join("inner")).unwrap();
            let folder = File::open(&path).unwrap();
            folder.set_modified(time).unwrap();
            folder
        };
        make(".cloister-output-left", old);
        make(".cloister-output-young", SystemTime::now());
        make("other", old);
        let held = make(".cloister-output-held", old);
        hold(&held).unwrap();
        sweep(place.path());
        let mut left: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".cloister-output-held", ".cloister-output-young", "other"]);
    }
}
