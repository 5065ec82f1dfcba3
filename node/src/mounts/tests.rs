//! What the host may see of a hostile image.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cloister_image::{LayerFile, Store};

use super::host::HostMounts;
use super::{accounts, erofs};

/// One tar entry: type, name, link, content, owner.
type Entry<'a> = (u8, &'a str, &'a str, &'a str, u32);

fn layer(store: &Store, entries: &[Entry<'_>]) -> LayerFile {
    let mut tar = Vec::new();
    for (kind, name, link, content, owner) in entries {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000750");
        header[108..115].copy_from_slice(format!("{owner:07o}").as_bytes());
        header[116..123].copy_from_slice(format!("{owner:07o}").as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"14000000000");
        header[156] = *kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(content.as_bytes());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    store.add_layer(tar.as_slice(), "test", &Default::default(), &Default::default(), "test").unwrap().0
}

fn make(entries: &[&[Entry<'_>]], volumes: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let layers = entries.iter().map(|entries| layer(&store, entries)).collect();
    let volumes: Vec<String> = volumes.iter().map(|volume| (*volume).to_owned()).collect();
    accounts::make(&dir.path().join("accounts"), layers, &volumes).unwrap();
    dir
}

fn read(dir: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(dir.join("accounts").join(path)).ok()
}

#[test]
fn account_files_of_the_highest_layer_are_shown_and_nothing_else() {
    let dir = make(
        &[
            &[
                (b'0', "etc/passwd", "", "old", 0),
                (b'0', "etc/group", "", "group", 0),
                (b'0', "etc/shadow", "", "x", 0),
            ],
            &[(b'0', "etc/passwd", "", "new", 0), (b'0', "bin/sh", "", "#!", 0)],
        ],
        &[],
    );
    assert_eq!(read(dir.path(), "etc/passwd").as_deref(), Some("new"));
    assert_eq!(read(dir.path(), "etc/group").as_deref(), Some("group"));
    assert_eq!(read(dir.path(), "etc/shadow"), None);
    assert_eq!(std::fs::read_dir(dir.path().join("accounts")).unwrap().count(), 1);
}

#[test]
fn links_are_followed_inside_the_image_only() {
    let dir = make(
        &[&[
            (b'2', "etc", "/usr/../usr/etc", "", 0),
            (b'2', "usr/etc/passwd", "../../../../../lib/passwd", "", 0),
            (b'0', "lib/passwd", "", "inside", 0),
            (b'2', "usr/etc/group", "group", "", 0),
        ]],
        &[],
    );
    assert_eq!(read(dir.path(), "etc/passwd").as_deref(), Some("inside"));
    assert_eq!(read(dir.path(), "etc/group"), None);
}

#[test]
fn volumes_are_copied_with_their_owners() {
    let dir = make(
        &[&[
            (b'5', "data", "", "", 1000),
            (b'0', "data/seed", "", "from the image", 1001),
            (b'5', "data/sub", "", "", 0),
            (b'2', "data/link", "seed", "", 1002),
            (b'0', "elsewhere", "", "x", 0),
        ]],
        &["/data", "data/sub", "/missing", "/"],
    );
    let at = dir.path().join("accounts/data");
    assert_eq!(read(dir.path(), "data/seed").as_deref(), Some("from the image"));
    let meta = at.metadata().unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (1000, 0o750));
    assert_eq!(at.join("seed").metadata().unwrap().uid(), 1001);
    assert_eq!(at.join("link").symlink_metadata().unwrap().uid(), 1002);
    assert_eq!(read(dir.path(), "elsewhere"), None);
    assert!(!dir.path().join("accounts/missing").exists());
}

#[test]
fn volumes_of_a_hostile_image_stay_below_their_target() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let dir = make(
        &[&[
            (b'2', "a/b", target, "", 0),
            (b'0', "a/c", "", "c", 0),
            (b'2', "etc/passwd", "/real", "", 0),
            (b'0', "real", "", "root", 0),
            (b'2', "etc/x", target, "", 0),
            (b'0', "etc/group", "", "group", 0),
        ]],
        &["/a", "/a/b", "/a/b/c", "/etc", "/etc/x/y", "/etc/passwd/deep", "/../../up", "/real", "/real/deep"],
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(read(dir.path(), "a/c").as_deref(), Some("c"));
    // Files, not links of the image: what is read there is the image's own.
    assert!(dir.path().join("accounts/etc/passwd").symlink_metadata().unwrap().is_file());
    assert_eq!(read(dir.path(), "etc/passwd").as_deref(), Some("root"));
}

/// Runs `work` as root on a thread whose mounts nobody else sees.
fn in_private(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: only this thread leaves the shared mount namespace; it owns nothing that depends on it.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "these tests need root");
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            work();
        });
    });
}

#[test]
fn a_layer_is_mounted_as_a_file_or_on_a_loop_device() {
    in_private(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let layer = layer(&store, &[(b'0', "file", "", "content", 0)]);
        let at = dir.path().join("at");
        std::fs::create_dir(&at).unwrap();
        for mount in [erofs::mount, erofs::mount_loop] {
            assert!(!erofs::is_mounted(&at));
            mount(&layer.path, &at).unwrap();
            assert!(erofs::is_mounted(&at));
            assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "content");
            erofs::unmount(&at).unwrap();
        }
        erofs::unmount(&at).unwrap();
    });
}

#[test]
fn layers_are_mounted_once_and_found_again_and_those_nobody_needs_go() {
    in_private(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let make = |name| layer(&store, &[(b'0', name, "", "content", 0)]);
        let layers = [make("a"), make("b")];
        let host = HostMounts::open(dir.path()).unwrap();
        let paths = host.ensure(&layers).unwrap();
        assert!(paths[0].join("a").exists() && paths[1].join("b").exists());
        // As after a crash in the middle of making another, and of taking one down.
        std::fs::create_dir_all(dir.path().join("mounts/7/fs")).unwrap();
        erofs::unmount(&paths[1]).unwrap();
        let host = HostMounts::open(dir.path()).unwrap();
        assert_eq!(host.ensure(&layers).unwrap(), paths);
        assert!(paths[1].join("b").exists() && !dir.path().join("mounts/7").exists());
        host.cleanup(|| Ok([layers[1].diff_id].into())).unwrap();
        assert!(!paths[0].exists() && paths[1].join("b").exists());
        host.cleanup(|| Ok([].into())).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("mounts")).unwrap().count(), 0);
    });
}
