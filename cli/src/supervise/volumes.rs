//! Turning `-v` into shares and bind mounts.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cloister_sandbox::Share;

use crate::value::Volume;

/// A volume, ready to be shared.
pub struct Prepared {
    /// The folder to share.
    pub share: Share,
    /// The file below it that was meant, when it was a file.
    pub file: Option<String>,
    /// Where it goes in the container.
    pub destination: String,
}

/// Finds what a `-v` means on this machine, before anything is started: a missing folder is created, as docker does,
/// and the path is freed of symbolic links.
pub fn resolve(volume: &Volume) -> Result<Volume> {
    let path = std::path::absolute(&volume.host)?;
    if fs::symlink_metadata(&path).is_err() {
        fs::create_dir_all(&path).with_context(|| format!("cannot create {} for -v", path.display()))?;
    }
    let host = path.canonicalize().with_context(|| format!("cannot use {} for -v", path.display()))?;
    let kind =
        fs::metadata(&host).with_context(|| format!("cannot use {} for -v", host.display()))?.file_type();
    if kind.is_dir() || kind.is_file() {
        return Ok(Volume { host, ..volume.clone() });
    }
    let what = if kind.is_socket() {
        "a socket, whose other end is a process outside the microVM"
    } else if kind.is_fifo() {
        "a FIFO, whose other end is a process outside the microVM"
    } else {
        "a device, which belongs to this machine's kernel and not the microVM's"
    };
    bail!("cannot share {}: it is {what}", host.display())
}

/// Prepares the share of a resolved volume.
///
/// A single file must not bring its whole folder along, so it gets a private folder below `folder` with a hard link
/// to it: writes in place are seen on both sides. On another filesystem, where no link can be made, a file to be
/// read only is copied and any other is refused.
pub fn prepare(volume: &Volume, number: usize, folder: &Path) -> Result<Prepared> {
    let tag = format!("volume{number}");
    let destination = volume.guest.clone();
    let read_only = volume.read_only;
    if volume.host.is_dir() {
        let share = Share { tag, path: volume.host.clone(), read_only };
        return Ok(Prepared { share, file: None, destination });
    }
    let private = folder.join(&tag);
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&private)
        .with_context(|| format!("cannot create {}", private.display()))?;
    let name = "file".to_owned();
    let inside: PathBuf = private.join(&name);
    if let Err(error) = fs::hard_link(&volume.host, &inside) {
        if !read_only {
            bail!(
                "cannot share the single file {} for writing ({error}): it is on another filesystem than {}; share its folder, or add :ro",
                volume.host.display(),
                folder.display()
            );
        }
        fs::copy(&volume.host, &inside).with_context(|| format!("cannot copy {}", volume.host.display()))?;
        tracing::warn!(file = %volume.host.display(), "shared as a copy: later changes to it are not seen in the microVM");
    }
    Ok(Prepared { share: Share { tag, path: private, read_only }, file: Some(name), destination })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-volume-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn volume(host: PathBuf, read_only: bool) -> Volume {
        Volume { host, guest: "/x".to_owned(), read_only }
    }

    #[test]
    fn a_missing_folder_is_created() {
        let dir = scratch("missing");
        let resolved = resolve(&volume(dir.join("a/b"), false)).unwrap();
        assert!(resolved.host.is_dir());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn links_are_followed_once_and_for_all() {
        let dir = scratch("links");
        fs::create_dir(dir.join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
        let resolved = resolve(&volume(dir.join("link"), false)).unwrap();
        assert_eq!(resolved.host, dir.canonicalize().unwrap().join("real"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sockets_and_devices_are_refused_with_a_reason() {
        let dir = scratch("special");
        let _listener = std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
        assert!(resolve(&volume(dir.join("s"), false)).unwrap_err().to_string().contains("socket"));
        assert!(resolve(&volume("/dev/null".into(), false)).unwrap_err().to_string().contains("device"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_single_file_does_not_bring_its_neighbours() {
        let dir = scratch("file");
        fs::write(dir.join("wanted"), "1").unwrap();
        fs::write(dir.join("secret"), "2").unwrap();
        let prepared = prepare(&volume(dir.join("wanted"), false), 0, &dir).unwrap();
        let names: Vec<_> =
            fs::read_dir(&prepared.share.path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        fs::write(prepared.share.path.join("file"), "changed").unwrap();
        assert_eq!(fs::read_to_string(dir.join("wanted")).unwrap(), "changed");
        fs::remove_dir_all(dir).unwrap();
    }
}
