//! What drivers that were killed have left of archives on their way, in a volume where nobody else would look.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, statat, unlinkat};
use rustix::io::Errno;

/// What the names of files on their way begin with; the rest is the build's uid.
pub const ON_ITS_WAY: &str = ".cloister-archive-";
/// A file that nobody has written to for so long is on its way no more. A build that lives writes over its own.
const OLD: Duration = Duration::from_secs(24 * 3600);
/// Entries of a tenant's folder that are looked at.
const ENTRIES: usize = 10_000;

/// Removes them from a folder; says how many.
///
/// # Errors
/// The folder can't be read.
pub fn sweep(folder: &OwnedFd) -> Result<usize, Errno> {
    let mut swept = 0;
    for entry in Dir::read_from(folder)?.take(ENTRIES) {
        let entry = entry?;
        let uid = entry.file_name().to_str().ok().and_then(|name| name.strip_prefix(ON_ITS_WAY));
        // As the API server makes them.
        let letter = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f' | b'-');
        if !uid.is_some_and(|uid| uid.len() == 36 && uid.bytes().all(letter)) {
            continue;
        }
        // Of the name itself, be it a link.
        let Ok(found) = statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let written = UNIX_EPOCH + Duration::from_secs(u64::try_from(found.st_mtime).unwrap_or(0));
        let old = SystemTime::now().duration_since(written).is_ok_and(|age| age > OLD);
        let file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if old && file && unlinkat(folder, entry.file_name(), AtFlags::empty()).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{CWD, Timespec, Timestamps, utimensat};

    use super::*;

    /// Makes an entry one that was last changed so long ago, be it a link.
    fn age(folder: &Path, name: &str, age: Duration) {
        let since = (SystemTime::now() - age).duration_since(UNIX_EPOCH).unwrap();
        let at = Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: 0 };
        let times = Timestamps { last_access: at, last_modification: at };
        utimensat(CWD, folder.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    #[test]
    fn only_old_files_of_archives_go_and_no_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let uid = |last: u8| format!("{ON_ITS_WAY}0b6f3c6a-6a5e-4c1e-9d4e-0242ac1100{last:02x}");
        let kept = [
            "app.tar".to_owned(),
            format!("{ON_ITS_WAY}mine"),
            format!("x{}", uid(2)),
            format!("{}0", uid(3)),
            // Somebody is at it.
            uid(4),
        ];
        for name in kept.iter().chain(&[uid(1)]) {
            fs::write(folder.path().join(name), "half").unwrap();
            let minute = Duration::from_secs(60);
            age(folder.path(), name, if *name == uid(4) { OLD - minute } else { OLD + minute });
        }
        fs::create_dir(folder.path().join(uid(5))).unwrap();
        symlink("app.tar", folder.path().join(uid(6))).unwrap();
        [uid(5), uid(6)].iter().for_each(|name| age(folder.path(), name, 2 * OLD));
        let opened = File::open(folder.path()).unwrap().into();
        assert_eq!(sweep(&opened).unwrap(), 1);
        assert_eq!(sweep(&opened).unwrap(), 0);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut wanted: Vec<_> = kept.into_iter().chain([5, 6].map(uid)).collect();
        wanted.sort();
        assert_eq!(left, wanted);
    }
}
