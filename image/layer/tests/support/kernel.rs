//! A file system as the kernel shows it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use cloister_layer::Digest;

/// Everything about one name that `lstat`, `readlink`, `read` and `getxattr` tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub rdev: (u32, u32),
    pub nlink: u64,
    /// Of files and symlinks.
    pub size: u64,
    pub target: Option<Vec<u8>>,
    pub data: Option<Digest>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode.
    pub same_as: Vec<u8>,
}

pub type Tree = BTreeMap<Vec<u8>, Seen>;

/// Mounts the file in a mount namespace of a thread's own and runs `look` there; nothing is left behind. Needs root.
pub fn mounted<T: Send>(file: &File, look: impl FnOnce(&Path) -> T + Send) -> T {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes no pointers; only this thread changes namespaces.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
            assert_eq!(result, 0, "this test must run as root: {}", std::io::Error::last_os_error());
            run(Command::new("mount").args(["--make-rprivate", "/"]));
            run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop", &source]).arg(folder.path()));
            let result = look(folder.path());
            run(Command::new("umount").arg(folder.path()));
            result
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The whole tree of a file system image.
pub fn seen(file: &File) -> Tree {
    mounted(file, walk)
}

/// Checks the file with `fsck.erofs` and fails the test with what it says.
pub fn fsck(file: &File) {
    let source = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    run(Command::new(tool("fsck.erofs")).args(["--extract", &source]));
}

/// A program of erofs-utils 1.8.6, from the cache that set-up fills.
pub fn tool(name: &str) -> std::path::PathBuf {
    let home = || std::path::PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let cache = std::env::var_os("CLOISTER_CACHE")
        .map(Into::into)
        .unwrap_or_else(|| std::env::var_os("XDG_CACHE_HOME").map_or_else(home, Into::into).join("cloister"));
    let path = cache.join("tools/erofs-utils-trixie/bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh", path.display());
    path
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, text.escape_ascii());
}

pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let stat = path.symlink_metadata().unwrap();
        let kind = stat.file_type();
        if kind.is_dir() {
            for child in path.read_dir().unwrap() {
                let child = child.unwrap().file_name().into_vec();
                todo.push(if name.is_empty() { child } else { [&name[..], b"/", &child].concat() });
            }
        }
        let first = inodes.entry(stat.ino()).or_insert_with(|| name.clone());
        if name < *first {
            *first = name.clone();
        }
        let device = kind_is_device(stat.mode());
        let seen = Seen {
            mode: stat.mode(),
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            rdev: if device { (libc::major(stat.rdev()), libc::minor(stat.rdev())) } else { (0, 0) },
            nlink: stat.nlink(),
            size: if kind.is_dir() { 0 } else { stat.size() },
            target: kind.is_symlink().then(|| path.read_link().unwrap().into_os_string().into_vec()),
            data: kind.is_file().then(|| Digest::of(&std::fs::read(&path).unwrap())),
            xattrs: xattrs(&path),
            same_as: stat.ino().to_le_bytes().to_vec(),
        };
        tree.insert(name, seen);
    }
    for seen in tree.values_mut() {
        let ino = u64::from_le_bytes(*seen.same_as.first_chunk().unwrap());
        seen.same_as = inodes[&ino].clone();
    }
    tree
}

fn kind_is_device(mode: u32) -> bool {
    matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names.truncate(len);
    let mut all = BTreeMap::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 1 << 16];
        let len = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(len);
        all.insert(name.to_vec(), value);
    }
    all
}
