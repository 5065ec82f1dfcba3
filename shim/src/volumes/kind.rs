//! What a bind mount of the host is, and so how it gets into the guest.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::failure::{Failure, Result};

/// Files up to this many bytes are copied into the guest.
const SMALL: u64 = 1 << 20;
/// Files of a pod that the runtime or kubelet writes and every container has, writable or not.
const POD_FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
/// Kubelet's plugins whose folders hold small files that are replaced as a whole.
const FILES_PLUGINS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// A way into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The pod's shared memory.
    Shm,
    /// A ConfigMap, Secret, projected or downward API volume: its folder, and the part of it that is mounted.
    Files(PathBuf, PathBuf),
    /// An emptyDir: its folder, and the part of it that is mounted.
    EmptyDir(PathBuf, PathBuf),
    /// One small file.
    File,
    /// A character device, by its name.
    Device(String),
    /// A block device.
    Block,
    /// Anything else: shared as it is.
    Share,
}

/// Finds the kind of a bind mount.
///
/// # Errors
/// When its source does not exist, or is something that can't work across machines.
pub fn of(source: &Path, destination: &Path, read_only: bool) -> Result<Kind> {
    if destination == Path::new("/dev/shm") {
        return Ok(Kind::Shm);
    }
    let real = resolve(source)?;
    let meta = fs::metadata(&real).map_err(|error| unusable(source, &error))?;
    let kind = meta.file_type();
    if kind.is_socket() {
        return Err(refused(source, "a socket, whose other end is a process outside the microVM"));
    }
    if kind.is_fifo() {
        return Err(refused(source, "a FIFO, whose other end is a process outside the microVM"));
    }
    if kind.is_char_device() {
        let name = real.strip_prefix("/dev").ok().and_then(Path::to_str);
        return match name {
            Some(name) => Ok(Kind::Device(name.to_owned())),
            None => Err(refused(source, "a device node outside /dev")),
        };
    }
    if kind.is_block_device() {
        return Ok(Kind::Block);
    }
    // Where the source really is: kubelet binds sub-paths of volumes to places of their own.
    let origin = if is_subpath(source) { origin(&real).unwrap_or(real) } else { real };
    if let Some((plugin, volume, part)) = volume(&origin) {
        if FILES_PLUGINS.contains(&plugin) {
            return Ok(Kind::Files(volume, part));
        }
        if plugin == EMPTY_DIR {
            return Ok(Kind::EmptyDir(volume, part));
        }
    }
    let pod_file = POD_FILES.iter().any(|file| destination == Path::new(file));
    if kind.is_file() && meta.size() <= SMALL && (read_only || pod_file) {
        return Ok(Kind::File);
    }
    Ok(Kind::Share)
}

fn resolve(source: &Path) -> Result<PathBuf> {
    if !source.is_absolute() {
        return Err(Failure::Invalid(format!("cannot mount {}: it is no absolute path", source.display())));
    }
    fs::canonicalize(source).map_err(|error| unusable(source, &error))
}

fn unusable(source: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("cannot mount {}: {error}", source.display()))
}

fn refused(source: &Path, what: &str) -> Failure {
    Failure::Invalid(format!("cannot mount {} into a microVM: it is {what}", source.display()))
}

/// `…/pods/UID/volume-subpaths/…`, where kubelet binds a part of a volume.
fn is_subpath(source: &Path) -> bool {
    names(source).any(|name| name == "volume-subpaths")
}

fn names(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    })
}

/// Splits `…/pods/UID/volumes/PLUGIN/NAME/part` into plugin, the volume's folder and the part.
fn volume(path: &Path) -> Option<(&str, PathBuf, PathBuf)> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let name = |at: usize| parts.get(at).and_then(|part| part.as_os_str().to_str());
    let at = (0..parts.len())
        .find(|at| name(*at) == Some("volumes") && name(at.wrapping_sub(2)) == Some("pods"))?;
    let plugin = name(at + 1).filter(|plugin| plugin.contains('~'))?;
    name(at + 2)?;
    let folder = parts.get(..at + 3)?.iter().collect();
    let part = parts.get(at + 3..)?.iter().collect();
    Some((plugin, folder, part))
}

/// The path that a bind mount at `mountpoint` shows, as far as this machine's mounts tell.
fn origin(mountpoint: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    origin_in(&mounts, mountpoint)
}

fn origin_in(mounts: &str, mountpoint: &Path) -> Option<PathBuf> {
    struct Line<'a> {
        device: &'a str,
        root: PathBuf,
        at: PathBuf,
    }
    let lines: Vec<Line<'_>> = mounts
        .lines()
        .filter_map(|line| {
            // proc(5): id parent major:minor root mountpoint …
            let mut fields = line.split(' ').skip(2);
            Some(Line {
                device: fields.next()?,
                root: unescape(fields.next()?),
                at: unescape(fields.next()?),
            })
        })
        .collect();
    let bound = lines.iter().rev().find(|line| mountpoint.starts_with(&line.at))?;
    let below = mountpoint.strip_prefix(&bound.at).ok()?;
    // The filesystem's own mount, deepest part of it first, is where the volume is.
    let full = bound.root.join(below);
    lines
        .iter()
        .filter(|line| line.device == bound.device && line.at != bound.at && full.starts_with(&line.root))
        .filter_map(|line| Some(line.at.join(full.strip_prefix(&line.root).ok()?)))
        .find(|path| volume(path).is_some())
}

/// Blanks and the like are octal numbers in mountinfo.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_volumes_are_known_by_their_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let make = |plugin: &str| {
            let path = root.join("pods/uid/volumes").join(plugin).join("name");
            fs::create_dir_all(path.join("sub")).unwrap();
            path
        };
        for plugin in FILES_PLUGINS {
            let path = make(plugin);
            assert_eq!(of(&path, Path::new("/c"), true).unwrap(), Kind::Files(path, PathBuf::new()));
        }
        let empty = make(EMPTY_DIR);
        let sub = of(&empty.join("sub"), Path::new("/c"), false).unwrap();
        assert_eq!(sub, Kind::EmptyDir(empty, "sub".into()));
        let csi = make("kubernetes.io~csi");
        assert_eq!(of(&csi, Path::new("/c"), false).unwrap(), Kind::Share);
    }

    #[test]
    fn a_sub_path_is_traced_to_its_volume() {
        let mounts = "20 1 8:1 / / rw - ext4 /dev/sda rw\n\
            30 20 0:50 / /k/pods/u/volumes/kubernetes.io~empty-dir/mem rw - tmpfs tmpfs rw\n\
            31 20 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/disk/a\\040b /k/pods/u/volume-subpaths/disk/c/0 rw - ext4 /dev/sda rw\n\
            32 20 0:50 /x /k/pods/u/volume-subpaths/mem/c/1 rw - tmpfs tmpfs rw\n";
        let disk = origin_in(mounts, Path::new("/k/pods/u/volume-subpaths/disk/c/0")).unwrap();
        assert_eq!(disk, Path::new("/k/pods/u/volumes/kubernetes.io~empty-dir/disk/a b"));
        let memory = origin_in(mounts, Path::new("/k/pods/u/volume-subpaths/mem/c/1")).unwrap();
        assert_eq!(memory, Path::new("/k/pods/u/volumes/kubernetes.io~empty-dir/mem/x"));
    }

    #[test]
    fn sockets_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = of(&path, Path::new("/s"), false).unwrap_err().to_string();
        assert!(error.contains("socket") && error.contains("microVM"), "{error}");
    }

    #[test]
    fn small_read_only_files_and_the_pods_own_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "x").unwrap();
        assert_eq!(of(&path, Path::new("/f"), true).unwrap(), Kind::File);
        assert_eq!(of(&path, Path::new("/etc/hosts"), false).unwrap(), Kind::File);
        assert_eq!(of(&path, Path::new("/dev/termination-log"), false).unwrap(), Kind::Share);
        assert_eq!(of(folder.path(), Path::new("/etc/hosts"), true).unwrap(), Kind::Share);
    }

    #[test]
    fn devices_go_by_name_and_missing_sources_are_errors() {
        assert_eq!(of(Path::new("/dev/null"), Path::new("/n"), false).unwrap(), Kind::Device("null".into()));
        assert!(of(Path::new("/nonexistent"), Path::new("/n"), false).is_err());
        assert!(of(Path::new("relative"), Path::new("/n"), false).is_err());
    }
}
