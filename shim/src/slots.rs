//! Places for machines that boot: no more of them at a time than the node has processors.
//!
//! A boot is work for a processor from its first to its last instruction. Twenty at once take turns on two processors, lose each
//! other's caches at every turn, and are all ready late; two at a time are ready one after the other. Places are locks on files,
//! so the kernel gives them back whatever becomes of their holder.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Time between two looks for a free place.
const LOOK: Duration = Duration::from_millis(5);
/// How long to look at most: machines that hang must not keep others from booting.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place that is held as long as this value.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "holds the lock")] File);

/// Takes one of `places` places in `folder`; nothing when none becomes free in time, or the folder can't be used: a machine
/// that could boot does.
pub async fn take(folder: &Path, places: usize) -> Option<Slot> {
    std::fs::create_dir_all(folder).ok()?;
    let look = async {
        loop {
            if let Some(slot) = (0..places).find_map(|place| lock(&folder.join(place.to_string()))) {
                return slot;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.ok()
}

fn lock(path: &Path) -> Option<Slot> {
    let file = File::options().create(true).write(true).truncate(false).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(Slot(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_when_its_machine_is_up() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (take(folder.path(), 2).await.unwrap(), take(folder.path(), 2).await.unwrap());
        let third = take(folder.path(), 2);
        let wait = tokio::time::timeout(Duration::from_millis(50), third).await;
        assert!(wait.is_err(), "both are taken");
        drop(one);
        assert!(take(folder.path(), 2).await.is_some());
        drop(two);
    }

    #[tokio::test]
    async fn without_a_folder_nobody_waits() {
        assert!(take(Path::new("/proc/none"), 1).await.is_none());
    }
}
