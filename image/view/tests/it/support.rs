//! Trees, mounts and pictures of trees to compare.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cloister_view::merged::{Limits, Merged, Node, Walk};
use cloister_view::reader::Image;

/// One entry of a tree as `lstat`, `readlink`, `lgetxattr` and `read` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub mtime: (i64, u32),
    /// Not for directories.
    pub size: u64,
    /// Of the contents or of the symlink target.
    pub hash: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// First name of the same file in byte order.
    pub same_as: Option<Vec<u8>>,
}

/// Entries by path; the root is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Moves this thread into a mount namespace of its own.
pub fn private_mounts() {
    assert!(rustix::process::geteuid().is_root(), "these tests mount file systems: run them as root");
    // SAFETY: only the file system context of this thread changes, and every test mounts by absolute paths.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    run("mount", ["--make-rprivate", "/"]);
}

/// Runs a program and returns what it printed; fails the test with its output if it fails.
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// A shell script run in `dir`, stopping at the first error.
pub fn sh(dir: &Path, script: &str) -> String {
    run("bash", ["-euc", &format!("cd {}\n{script}", dir.display())])
}

pub fn mount(file: &Path, on: &Path, kind: &str) {
    fs::create_dir_all(on).unwrap();
    let args: [&OsStr; 6] =
        ["-t".as_ref(), kind.as_ref(), "-o".as_ref(), "loop,ro".as_ref(), file.as_ref(), on.as_ref()];
    run("mount", args);
}

/// Mounts `lowers`, lowest first, as a read-only overlay.
pub fn mount_overlay(lowers: &[PathBuf], on: &Path) {
    fs::create_dir_all(on).unwrap();
    let stack: Vec<_> = lowers.iter().rev().map(|l| l.to_str().unwrap()).collect();
    // Overlayfs wants two layers when nothing is writable.
    let empty = on.with_extension("empty");
    fs::create_dir_all(&empty).unwrap();
    let options = format!(
        "lowerdir={}:{},xino=off,redirect_dir=nofollow,metacopy=off",
        stack.join(":"),
        empty.display()
    );
    run("mount", ["-t", "overlay", "overlay", "-o", &options, on.to_str().unwrap()]);
}

/// erofs-utils 1.8.6, which `scripts/setup.sh` put into the cache.
pub fn erofs_tool(name: &str) -> PathBuf {
    let cache = std::env::var_os("CLOISTER_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap());
        std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("cloister")
    });
    cache.join("tools/erofs-utils-trixie/bin").join(name)
}

/// An EROFS file of folder `from` by `mkfs.erofs`.
pub fn mkfs_erofs(from: &Path, to: &Path, options: &[&str]) {
    let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    args.extend([to.as_os_str(), from.as_os_str()]);
    run(erofs_tool("mkfs.erofs"), args);
}

pub fn open(file: &Path) -> Image {
    Image::open(File::open(file).unwrap(), file.display().to_string()).unwrap()
}

pub fn fsck_ext4(file: &Path) {
    run("e2fsck", [OsStr::new("-fn"), file.as_os_str()]);
}

/// A picture of the tree mounted at `root`. A name that is listed but cannot be looked up is left out: that is how
/// overlayfs shows a whiteout in a directory that exists in one layer only.
pub fn picture(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut firsts = HashMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let key = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.nlink() > 1 {
            let first: &mut Vec<u8> = firsts.entry((meta.dev(), meta.ino())).or_insert_with(|| key.clone());
            if key < *first {
                *first = key.clone();
            }
        }
        tree.insert(key, entry(&path, &meta));
    }
    let keys: Vec<_> = tree.keys().cloned().collect();
    for key in keys {
        let meta = root.join(OsStr::from_bytes(&key)).symlink_metadata().unwrap();
        let first = firsts.get(&(meta.dev(), meta.ino())).filter(|_| !meta.is_dir());
        tree.get_mut(&key).unwrap().same_as = first.cloned();
    }
    forget_lonely(tree)
}

fn entry(path: &Path, meta: &fs::Metadata) -> Entry {
    let mut hasher = DefaultHasher::new();
    if meta.is_symlink() {
        fs::read_link(path).unwrap().into_os_string().into_vec().hash(&mut hasher);
    } else if meta.is_file() {
        hash_reader(File::open(path).unwrap(), &mut hasher);
    }
    let device = meta.file_type().is_block_device() || meta.file_type().is_char_device();
    let rdev = meta.rdev();
    Entry {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: if device { (rustix::fs::major(rdev), rustix::fs::minor(rdev)) } else { (0, 0) },
        mtime: (meta.mtime(), meta.mtime_nsec() as u32),
        size: if meta.is_dir() { 0 } else { meta.size() },
        hash: hasher.finish(),
        xattrs: xattrs(path),
        same_as: None,
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut names, mut value) = (vec![0; 65536], vec![0; 65536]);
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut all: Vec<_> = names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux" && *name != b"system.data")
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    all.sort();
    all
}

fn hash_reader(mut from: impl Read, hasher: &mut DefaultHasher) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]).unwrap() {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return;
        }
        hasher.write(&buffer[..filled]);
    }
}

/// The same picture taken through our own merged view.
pub fn picture_merged(merged: &Merged) -> Tree {
    let mut tree = Tree::new();
    let mut firsts: HashMap<_, Vec<u8>> = HashMap::new();
    let mut ids = HashMap::new();
    let mut walk = Walk::new(merged, Limits::default(), ()).unwrap();
    tree.insert(Vec::new(), merged_entry(merged, &merged.root().unwrap()));
    while let Some(folder) = walk.next_folder() {
        for child in walk.children(&folder).unwrap() {
            let child = child.unwrap();
            let path = folder.path.join(&child.name);
            tree.insert(path.clone(), merged_entry(merged, &child.node));
            if child.node.is_dir() {
                walk.push(&folder, child, ()).unwrap();
            } else if child.node.may_have_links() {
                ids.insert(path.clone(), child.node.id());
                let first = firsts.entry(child.node.id()).or_insert_with(|| path.clone());
                if path < *first {
                    *first = path;
                }
            }
        }
    }
    for (path, id) in ids {
        tree.get_mut(&path).unwrap().same_as = firsts.get(&id).cloned();
    }
    forget_lonely(tree)
}

/// A link count above one says little where other names are hidden: forget groups of a single name.
fn forget_lonely(mut tree: Tree) -> Tree {
    let mut sizes = HashMap::new();
    for first in tree.values().filter_map(|e| e.same_as.clone()) {
        *sizes.entry(first).or_insert(0) += 1;
    }
    for entry in tree.values_mut() {
        if entry.same_as.as_ref().is_some_and(|first| sizes[first] < 2) {
            entry.same_as = None;
        }
    }
    tree
}

struct Contents<'a>(&'a Merged, &'a Node, u64);

impl Read for Contents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.image(self.1).read_at(&self.1.inode(), self.2, buf).unwrap();
        self.2 += read as u64;
        Ok(read)
    }
}

fn merged_entry(merged: &Merged, node: &Node) -> Entry {
    let mut hasher = DefaultHasher::new();
    if node.is_symlink() {
        merged.link_target(node).unwrap().hash(&mut hasher);
    } else if node.is_file() {
        hash_reader(Contents(merged, node, 0), &mut hasher);
    }
    let meta = node.meta();
    Entry {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        rdev: meta.rdev,
        mtime: (meta.mtime, meta.mtime_nsec),
        size: if node.is_dir() { 0 } else { meta.size },
        hash: hasher.finish(),
        xattrs: merged.xattrs(node).unwrap().into_iter().map(|x| (x.name, x.value)).collect(),
        same_as: None,
    }
}

/// Fails with the first entries that differ.
#[track_caller]
pub fn assert_same(ours: &Tree, theirs: &Tree) {
    let mut differences = Vec::new();
    for key in ours.keys().chain(theirs.keys().filter(|k| !ours.contains_key(*k))) {
        let (a, b) = (ours.get(key), theirs.get(key));
        if a != b {
            differences.push(format!("{:?}\n  ours   {a:?}\n  theirs {b:?}", String::from_utf8_lossy(key)));
        }
    }
    let shown = differences.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} entries differ:\n{shown}", differences.len());
}

/// Fills `dir` with every kind of entry and every awkward attribute.
pub fn everything(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    sh(
        dir,
        r#"
        for n in 0 1 59 60 511 512 513 4095 4096 4097 8192 100000; do head -c $n /dev/urandom > file-$n; done
        cp /bin/bash big; chmod 4755 big
        truncate -s 5M holes; printf middle | dd of=holes bs=1 seek=3000000 conv=notrunc status=none
        printf end | dd of=holes bs=1 seek=5242877 conv=notrunc status=none
        truncate -s 40M only-holes
        mkfifo fifo; mknod chr c 4095 1048575; mknod blk b 7 300; mknod null c 1 3
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
        ln -s short link; ln -s "$(printf 'x%.0s' $(seq 59))" link59; ln -s "$(printf 'y%.0s' $(seq 60))" link60
        ln -s "$(printf 'long/%.0s' $(seq 600))" link3000
        mkdir -p sub/deeper/deepest sticky empty; chmod 1777 sticky; chmod 2750 sub
        ln file-4097 sub/again; ln file-4097 sub/deeper/again; ln link sub/samelink; ln fifo sub/samefifo
        chown -h 70000:4000000000 file-512 link sub; chown 4294967294:65536 fifo
        touch -h -d '1969-12-31 23:59:59.123456789 UTC' file-1 link
        touch -d '1905-01-01 00:00:00.5 UTC' file-59
        touch -d '2400-02-29 12:00:00.999999999 UTC' file-511 sub
        setfattr -n user.small -v value file-60; setfattr -n user.empty file-60
        setfattr -n user.large -v "v$(head -c 2000 /dev/urandom | base64 -w0)" file-513
        setfattr -n trusted.hidden -v 0x00ff00 sub
        setfattr -n security.capability -v 0x0100000200240000000000000000000000000000 big
        for f in file-0 file-1 file-59 file-512 sub/deeper; do setfattr -n user.same -v shared-by-many $f; done
        acl=0x0200000001000600ffffffff02000700d204000004000400ffffffff080004002e16000010000700ffffffff20000400ffffffff
        setfattr -n system.posix_acl_access -v $acl file-8192; setfattr -n system.posix_acl_default -v $acl sub/deeper
        touch -- "$(printf 'n%.0s' $(seq 255))" $'not-utf8-\xff\xfe' 'with space' $'new\nline' '-dash' '!bang'
        mkdir many; (cd many; seq -f 'entry-%06g' 1 3000 | xargs touch -d @1700000000.5)
        touch -d '2001-02-03 04:05:06.789 UTC' . ; chmod 751 .
        "#,
    );
}
