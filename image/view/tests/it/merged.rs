//! The merged view against the kernel's overlayfs.

use std::path::{Path, PathBuf};

use cloister_view::merged::Merged;

use crate::support::{
    assert_same, everything, mkfs_erofs, mount, mount_overlay, open, picture, picture_merged,
};
use crate::support::{private_mounts, sh};

/// Turns folders `l0`, `l1`, … of `dir` into EROFS files and compares overlayfs over their mounts with our view. Layers
/// below an opaque root are left out for overlayfs, which does not look for that mark.
fn compare(dir: &Path, count: usize) {
    let mut mounts: Vec<PathBuf> = Vec::new();
    let mut images = Vec::new();
    for index in 0..count {
        let (file, on) = (dir.join(format!("{index}.erofs")), dir.join(format!("m{index}")));
        mkfs_erofs(&dir.join(format!("l{index}")), &file, &["-b512"]);
        mount(&file, &on, "erofs");
        let mut mark = [0; 2];
        if rustix::fs::getxattr(&on, "trusted.overlay.opaque", &mut mark[..]) == Ok(1) && mark[0] == b'y' {
            mounts.clear();
        }
        mounts.push(on);
        images.push(open(&file));
    }
    let merged = dir.join("merged");
    mount_overlay(&mounts, &merged);
    let ours = Merged::new(images).unwrap();
    assert_same(&picture_merged(&ours), &picture(&merged));
    let root = ours.root().unwrap();
    for child in ours.children(&root).unwrap() {
        let child = child.unwrap();
        assert_eq!(ours.lookup(&root, &child.name).unwrap().unwrap().id(), child.node.id());
    }
    assert!(ours.lookup(&root, b"no such name").unwrap().is_none());
}

#[test]
fn layers_merge_as_overlayfs_merges_them() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    everything(&dir.path().join("l0"));
    sh(
        dir.path(),
        r#"
        mkdir -p l1/sub/deeper l1/many l1/fresh l1/file-60 l2/sub l2/back l2/file-60 l3/sub
        white() { mknod "$1" c 0 0; }
        opaque() { setfattr -n trusted.overlay.opaque -v y "$1"; }
        # Deleted, replaced by another kind, added to, replaced whole.
        white l1/file-1; white l1/empty; white l1/not-there; echo new > l1/sticky
        echo inside > l1/file-60/inside; echo deeper > l2/file-60/more
        echo added > l1/sub/deeper/added; chmod 700 l1/sub/deeper; touch -d 2020-01-01 l1/sub/deeper
        opaque l1/many; echo only > l1/many/only; white l1/many/entry-000001
        white l1/fresh/whiteout-in-a-new-folder; echo x > l1/fresh/x
        # Hard links: one name replaced above, one deleted above, a pair within one layer.
        echo replaced > l2/sub/again; echo pair > l2/pair; ln l2/pair l2/back/pair2
        # Gone, then back; a folder over a file over a folder.
        echo again > l2/file-1; white l2/sticky; mkdir l3/sticky; echo back > l3/sticky/back
        white l2/sub/deeper; mkdir l3/sub/deeper; echo anew > l3/sub/deeper/anew
        # Marks that are nobody's business.
        setfattr -n trusted.overlay.opaque -v n l3/sub; setfattr -n trusted.overlay.origin -v 0x00 l2/pair
        setfattr -n trusted.overlay.overlay.opaque -v y l3/sticky; setfattr -n trusted.mine -v 1 l3/sticky
        setfattr -n trusted.overlay.opaque -v n l2; chmod 700 l3; touch -d 2019-01-01 l3; setfattr -n user.root -v top l3
        "#,
    );
    compare(dir.path(), 4);
}

#[test]
fn a_layer_with_an_opaque_root_hides_all_lower_ones() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        r#"
        mkdir -p l0/a l1/a l2/a; echo 0 > l0/a/low; echo 0 > l0/gone; echo 1 > l1/a/mid; echo 2 > l2/a/high
        setfattr -n trusted.overlay.opaque -v y l1
        "#,
    );
    compare(dir.path(), 3);
    let layers = (0..3).map(|index| open(&dir.path().join(format!("{index}.erofs")))).collect();
    let merged = Merged::new(layers).unwrap();
    let names = |node| merged.children(&node).unwrap().map(|child| child.unwrap()).collect::<Vec<_>>();
    let root = names(merged.root().unwrap());
    assert_eq!(root.iter().map(|child| &child.name[..]).collect::<Vec<_>>(), [b"a"]);
    let below: Vec<_> = names(root[0].node.clone()).into_iter().map(|child| child.name).collect();
    assert_eq!(below, [&b"high"[..], b"mid"]);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum What {
        File(u8),
        Dir { opaque: bool },
        Whiteout,
        Link(usize),
    }

    fn what() -> impl Strategy<Value = What> {
        prop_oneof![
            3 => any::<u8>().prop_map(What::File),
            4 => any::<bool>().prop_map(|opaque| What::Dir { opaque }),
            2 => Just(What::Whiteout),
            1 => (0usize..8).prop_map(What::Link),
        ]
    }

    /// Paths over a tiny alphabet, so that layers meet.
    fn layer() -> impl Strategy<Value = Vec<(Vec<u8>, What)>> {
        proptest::collection::vec((proptest::collection::vec(0u8..3, 1..4), what()), 0..14)
    }

    fn build(layer: &[(Vec<u8>, What)], root: &Path) {
        std::fs::create_dir_all(root).unwrap();
        let mut files: Vec<PathBuf> = Vec::new();
        for (names, what) in layer {
            let path =
                names.iter().fold(root.to_path_buf(), |p, n| p.join(format!("{}", (b'a' + n) as char)));
            // Whatever stands in the way makes the step a no-op.
            if path.parent().is_none_or(|p| std::fs::create_dir_all(p).is_err()) {
                continue;
            }
            let _ = match what {
                What::File(byte) => std::fs::write(&path, [*byte]).map(|()| files.push(path)),
                What::Dir { opaque } => std::fs::create_dir(&path).map(|()| {
                    if *opaque {
                        let flags = rustix::fs::XattrFlags::empty();
                        rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", flags).unwrap();
                    }
                }),
                What::Whiteout => {
                    let kind = rustix::fs::FileType::CharacterDevice;
                    let mode = rustix::fs::Mode::empty();
                    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).map_err(Into::into)
                }
                What::Link(n) => match files.get(n % files.len().max(1)) {
                    Some(file) => std::fs::hard_link(file, &path),
                    None => Ok(()),
                },
            };
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 60, failure_persistence: None, ..Default::default() })]
        #[test]
        fn any_layers_merge_as_overlayfs_merges_them(layers in proptest::collection::vec(layer(), 2..5)) {
            // A thread per case: its mounts end with it.
            std::thread::spawn(move || {
                private_mounts();
                let dir = tempfile::tempdir().unwrap();
                for (index, layer) in layers.iter().enumerate() {
                    build(layer, &dir.path().join(format!("l{index}")));
                }
                compare(dir.path(), layers.len());
            })
            .join()
            .unwrap();
        }
    }
}
