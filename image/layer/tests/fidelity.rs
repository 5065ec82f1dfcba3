//! Every kind of entry, through the kernel's own mount of the result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the lints' exception covers test functions only

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;

use support::converted;
use support::kernel::{Seen, Tree, fsck, run, seen, walk};
use support::maker::{Fields, Maker, PLAIN, record, seal};

const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

/// Converts, checks with fsck, and shows the tree.
fn show(tar: Vec<u8>) -> Tree {
    let (file, done) = converted(&tar).unwrap();
    fsck(&file);
    let tree = seen(&file);
    let inodes = tree.iter().filter(|(name, seen)| **name == seen.same_as).count();
    assert_eq!(done.inodes, inodes as u64);
    tree
}

fn at<'t>(tree: &'t Tree, name: &str) -> &'t Seen {
    tree.get(name.as_bytes()).unwrap_or_else(|| panic!("{name} is missing from {:?}", tree.keys()))
}

fn names(tree: &Tree) -> Vec<String> {
    tree.keys().map(|name| name.escape_ascii().to_string()).collect()
}

fn data(bytes: &[u8]) -> Option<cloister_layer::Digest> {
    Some(cloister_layer::Digest::of(bytes))
}

#[test]
fn every_type_with_every_attribute() {
    let tree = show(
        Maker::new()
            .with(Fields { mode: 0o1751, uid: 7, gid: 8, mtime: 5 })
            .pax("mtime", b"5.000000001")
            .dir(b"./")
            .with(Fields { mode: 0o4755, uid: 70_000, gid: 4_000_000_000, mtime: -1 })
            .file(b"setuid", b"x")
            .with(Fields { mode: 0o2755, uid: 2_097_152, gid: 65_536, mtime: 1 << 33 })
            .file(b"setgid", &[7; 513])
            .pax("uid", b"4294967294")
            .pax("gid", b"100000")
            .pax("mtime", b"-1.25")
            .file(b"pax", &[8; 100_000])
            .pax("mtime", b"4294967296.999999999")
            .file(b"late", b"")
            .with(Fields { mode: 0o1777, ..PLAIN })
            .dir(b"tmp/")
            .symlink(b"link", b"../\xff/target")
            .symlink(b"long-link", &[b'y'; 4095])
            .symlink(b"link-500", &[b'z'; 500])
            .node(b'3', b"chr", 4095, 1_048_575)
            .node(b'4', b"blk", 8, 0)
            .node(b'6', b"fifo", 0, 0)
            .entry(b'7', b"contiguous", b"", 3, b"abc", (0, 0))
            .with(Fields { mode: 0o100_600, ..PLAIN })
            .entry(0, b"v7", b"", 1, b"z", (0, 0))
            .entry(0, b"v7-dir/", b"", 0, b"", (0, 0))
            .end(),
    );
    let root = at(&tree, "");
    assert_eq!((root.mode, root.uid, root.gid, root.mtime), (S_IFDIR | 0o1751, 7, 8, (5, 1)));
    assert_eq!(root.nlink, 4);
    let setuid = at(&tree, "setuid");
    assert_eq!((setuid.mode, setuid.uid, setuid.gid), (S_IFREG | 0o4755, 70_000, 4_000_000_000));
    assert_eq!((setuid.mtime, setuid.data, setuid.nlink), ((-1, 0), data(b"x"), 1));
    let setgid = at(&tree, "setgid");
    assert_eq!((setgid.mode, setgid.uid, setgid.gid), (S_IFREG | 0o2755, 2_097_152, 65_536));
    assert_eq!((setgid.mtime, setgid.data), ((1 << 33, 0), data(&[7; 513])));
    let pax = at(&tree, "pax");
    assert_eq!((pax.uid, pax.gid, pax.mtime), (4_294_967_294, 100_000, (-2, 750_000_000)));
    assert_eq!((pax.data, pax.size), (data(&[8; 100_000]), 100_000));
    assert_eq!((at(&tree, "late").mtime, at(&tree, "late").size), ((1 << 32, 999_999_999), 0));
    assert_eq!(at(&tree, "tmp").mode, S_IFDIR | 0o1777);
    let link = at(&tree, "link");
    assert_eq!((link.mode, link.target.as_deref()), (S_IFLNK | 0o777, Some(&b"../\xff/target"[..])));
    assert_eq!(at(&tree, "long-link").target, Some(vec![b'y'; 4095]));
    assert_eq!(at(&tree, "link-500").target, Some(vec![b'z'; 500]));
    assert_eq!((at(&tree, "chr").mode, at(&tree, "chr").rdev), (S_IFCHR | 0o644, (4095, 1_048_575)));
    assert_eq!((at(&tree, "blk").mode, at(&tree, "blk").rdev), (S_IFBLK | 0o644, (8, 0)));
    assert_eq!(at(&tree, "fifo").mode, S_IFIFO | 0o644);
    assert_eq!(at(&tree, "contiguous").data, data(b"abc"));
    assert_eq!((at(&tree, "v7").mode, at(&tree, "v7").data), (S_IFREG | 0o600, data(b"z")));
    assert_eq!(at(&tree, "v7-dir").mode, S_IFDIR | 0o644);
}

#[test]
fn attributes_of_every_namespace() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let acl =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let big = vec![b'v'; 60_000];
    let tree = show(
        Maker::new()
            .pax("SCHILY.xattr.security.capability", capability)
            .pax("SCHILY.xattr.user.binary", b"a\0b\nc=d")
            .pax("SCHILY.xattr.user.empty", b"")
            .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
            .pax("SCHILY.xattr.com.apple.provenance", b"y")
            .pax("LIBARCHIVE.xattr.user.percent%25", b"AAEC/w")
            .file(b"file", b"x")
            .pax("SCHILY.xattr.system.posix_acl_access", acl)
            .pax("SCHILY.xattr.system.posix_acl_default", acl)
            .dir(b"dir/")
            .pax("SCHILY.xattr.user.big", &big)
            .file(b"big", b"")
            .pax("SCHILY.xattr.trusted.t", b"1")
            .pax("SCHILY.xattr.user.not-here", b"1")
            .symlink(b"link", &[b't'; 490])
            .file(b"none", b"")
            .end(),
    );
    let map = |list: &[(&str, &[u8])]| -> BTreeMap<Vec<u8>, Vec<u8>> {
        list.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect()
    };
    assert_eq!(
        at(&tree, "file").xattrs,
        map(&[
            ("security.capability", capability),
            ("user.binary", b"a\0b\nc=d"),
            ("user.empty", b""),
            ("user.percent%", &[0, 1, 2, 255]),
        ])
    );
    assert_eq!(
        at(&tree, "dir").xattrs,
        map(&[("system.posix_acl_access", acl), ("system.posix_acl_default", acl)])
    );
    assert_eq!(at(&tree, "big").xattrs, map(&[("user.big", &big)]));
    assert_eq!(at(&tree, "link").xattrs, map(&[("trusted.t", b"1")]));
    assert_eq!(at(&tree, "none").xattrs, map(&[]));
}

#[test]
fn hardlinks_count_and_survive_what_comes_later() {
    let tree = show(
        Maker::new()
            .file(b"a", b"first")
            .hardlink(b"d/b", b"./a")
            .hardlink(b"c", b"/d/b")
            .file(b"a", b"second")
            .symlink(b"s", b"a")
            .hardlink(b"s2", b"s")
            .node(b'3', b"null", 1, 3)
            .hardlink(b"null2", b"null")
            .hardlink(b"null2", b"null2")
            .end(),
    );
    assert_eq!((at(&tree, "a").data, at(&tree, "a").nlink), (data(b"second"), 1));
    for name in ["c", "d/b"] {
        let link = at(&tree, name);
        assert_eq!((link.data, link.nlink, &link.same_as[..]), (data(b"first"), 2, &b"c"[..]));
    }
    assert_eq!((at(&tree, "s2").nlink, &at(&tree, "s2").same_as[..]), (2, &b"s"[..]));
    assert_eq!((at(&tree, "null2").rdev, at(&tree, "null2").nlink), ((1, 3), 2));
}

#[test]
fn whiteouts_as_overlayfs_reads_them() {
    let tree = show(
        Maker::new()
            .file(b"usr/.wh.gone", b"")
            .file(b"opaque/.wh..wh..opq", b"")
            .file(b"opaque/new", b"n")
            .file(b"both", b"here")
            .file(b".wh.both", b"")
            .file(b".wh.later", b"")
            .file(b"later", b"there")
            .file(b".wh.dir", b"")
            .file(b"dir/x", b"")
            .dir(b"dir2/")
            .file(b".wh.dir2", b"")
            .file(b".wh..wh.plnk/1.2", b"")
            .file(b".wh..wh.aufs", b"")
            .end(),
    );
    let gone = at(&tree, "usr/gone");
    assert_eq!((gone.mode, gone.rdev), (S_IFCHR, (0, 0)));
    assert_eq!((at(&tree, "both").data, at(&tree, "later").data), (data(b"here"), data(b"there")));
    for name in ["opaque", "dir", "dir2"] {
        assert_eq!(at(&tree, name).xattrs[&b"trusted.overlay.opaque"[..]], b"y", "{name}");
    }
    let rest = ["", "both", "dir", "dir/x", "dir2", "later", "opaque", "opaque/new", "usr", "usr/gone"];
    assert_eq!(names(&tree), rest);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tree = show(
        Maker::new()
            .with(Fields { mode: 0o700, ..PLAIN })
            .dir(b"kept/")
            .file(b"kept/child", b"1")
            .with(Fields { mode: 0o711, ..PLAIN })
            .dir(b"/kept")
            .dir(b"to-file/")
            .file(b"to-file/lost", b"")
            .file(b"./to-file", b"f")
            .file(b"to-dir", b"f")
            .dir(b"to-dir//./")
            .symlink(b"link", b"kept")
            .dir(b"link/")
            .symlink(b"lib", b"/usr/../../kept")
            .file(b"lib/through", b"t")
            .end(),
    );
    assert_eq!(at(&tree, "kept").mode, S_IFDIR | 0o711);
    assert_eq!(at(&tree, "to-file").data, data(b"f"));
    assert_eq!(at(&tree, "to-dir").mode & S_IFDIR, S_IFDIR);
    let rest = ["", "kept", "kept/child", "kept/through", "lib", "link", "to-dir", "to-file", "usr"];
    assert_eq!(names(&tree), rest);
    assert_eq!((at(&tree, "usr").mode, at(&tree, "usr").mtime), (S_IFDIR | 0o755, (0, 0)));
}

#[test]
fn names_long_odd_and_many() {
    let long = [b'n'; 255];
    let path = [&long[..], &long, &long, b"leaf"].join(&b'/');
    let mut maker = Maker::new()
        .file(&path, b"deep")
        .file(b"\xff\xfe\n\x01", b"bytes")
        .global(&record("comment", b"hello"))
        .pax("hdrcharset", b"BINARY")
        .pax("path", b"\xe9t\xe9")
        .file(b"latin", b"1");
    let gnu =
        Maker::new().entry(b'L', b"././@LongLink", b"", 151, &[&[b'g'; 150][..], b"\0"].concat(), (0, 0));
    let gnu = gnu.entry(b'K', b"././@LongLink", b"", 121, &[&[b'k'; 120][..], b"\0"].concat(), (0, 0));
    maker = maker.raw(&gnu.bytes).symlink(b"short", b"short");
    let mut prefixed = support::maker::header(b'0', b"name", b"", 0, &PLAIN, (0, 0));
    prefixed[345..351].copy_from_slice(b"prefix");
    seal(&mut prefixed);
    maker = maker.raw(&prefixed);
    for number in 0..100_000 {
        maker = maker.file(format!("many/{number:x}").as_bytes(), b"");
    }
    let tree = show(maker.end());
    assert_eq!(tree[&path].data, data(b"deep"));
    assert_eq!(tree[&b"\xff\xfe\n\x01"[..]].data, data(b"bytes"));
    assert!(tree.contains_key(&b"\xe9t\xe9"[..]));
    assert_eq!(tree[&[b'g'; 150][..]].target, Some(vec![b'k'; 120]));
    assert!(tree.contains_key(&b"prefix/name"[..]));
    assert_eq!(tree.keys().filter(|name| name.starts_with(b"many/")).count(), 100_000);
}

/// A real tree with holes, links, attributes and ACLs, archived by GNU tar in each of its formats: what we make of it
/// must be what GNU tar itself extracts as root.
#[test]
fn equal_to_what_gnu_tar_extracts() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let script = r#"
        set -e; cd "$1"
        mkdir -p a/b/c "sp ace" deep; cp /etc/passwd a/file; ln a/file a/b/hard; ln -s ../file a/b/sym; ln a/b/sym a/b/symhard
        mknod a/null c 1 3; mknod a/loop b 7 300; mkfifo a/fifo; chown 70000:80000 a/file; chmod 6711 a/b
        printf 'tail' > sparse; truncate -s 3M sparse; printf 'middle' | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none
        truncate -s 200M holes; dd if=/dev/urandom of=unaligned bs=777 count=3 seek=100 status=none; truncate -s 1000001 unaligned
        setfattr -n user.one -v 1 a/file; setfattr -n trusted.two -v 2 a/b; setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= a/file
        touch -h -d '1965-03-04 05:06:07.123456789' a/b/sym; touch -d '2100-01-01 00:00:00.5' sparse; touch -d '1901-12-14' a/null
        i=0; while [ $i -lt 600 ]; do : > "deep/f$i"; i=$((i+1)); done
        long=$(printf 'x%.0s' $(seq 200)); mkdir -p "$long/$long"; echo hi > "$long/$long/$long"; ln -s "$long/$long/$long" longlink
        chown -h 5:6 a/b/sym; touch -d '2001-02-03 04:05:06.7' a/b a .
    "#;
    run(Command::new("bash").args(["-c", script, "sh"]).arg(&root));
    for format in [
        &["--format=posix"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=gnu"],
    ] {
        let tar = folder.path().join("layer.tar");
        run(Command::new("tar")
            .args(format)
            .args(["--xattrs", "--xattrs-include=*", "-S", "--numeric-owner", "--sort=name"])
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&tar)
            .arg("."));
        let out = folder.path().join(format.join("-"));
        std::fs::create_dir(&out).unwrap();
        run(Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p"])
            .arg("-C")
            .arg(&out)
            .arg("-xf")
            .arg(&tar));
        let mut ours = show(std::fs::read(&tar).unwrap());
        let mut theirs = walk(&out);
        // ext4 counts the links of folders by its own rules from 65,000 on only; here both must agree.
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, theirs) in &mut theirs {
            let ours = ours.get_mut(name).unwrap();
            assert_eq!(ours, theirs, "{format:?} {}", name.escape_ascii());
        }
    }
}

#[test]
fn same_tar_same_bytes_whatever_the_compression() {
    let tar = Maker::new()
        .file(b"b", &[1; 70_000])
        .pax("SCHILY.xattr.user.a", b"1")
        .file(b"a", b"2")
        .dir(b"c")
        .end();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gz.write_all(&tar).unwrap();
    let two = tar.len() / 2;
    let mut members = Vec::new();
    for half in [&tar[..two], &tar[two..]] {
        let mut gz = flate2::write::GzEncoder::new(members, flate2::Compression::fast());
        gz.write_all(half).unwrap();
        members = gz.finish().unwrap();
    }
    let zstd = zstd::stream::encode_all(&tar[..], 3).unwrap();
    let (plain, first) = converted(&tar).unwrap();
    let all = |file: &std::fs::File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    };
    let range = cloister_layer::erofs::tar_range(&plain).unwrap().unwrap();
    let bytes = all(&plain);
    assert_eq!(bytes[range.offset as usize..][..range.len as usize], tar);
    assert_eq!((range.diff_id, range.diff_id), (first.diff_id, cloister_layer::Digest::of(&tar)));
    for blob in [gz.finish().unwrap(), members, zstd, tar] {
        let (file, done) = converted(&blob).unwrap();
        assert_eq!(all(&file), bytes);
        assert_eq!((done.diff_id, done.compressed_size), (first.diff_id, blob.len() as u64));
        assert_eq!(done.compressed_digest, cloister_layer::Digest::of(&blob));
    }
}
