//! Whole trees as ext4, checked by e2fsck and read by the kernel.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cloister_view::ext4::{self, Options, Size};
use cloister_view::merged::{Limits, Merged};

use crate::support::{assert_same, everything, fsck_ext4, mkfs_erofs, mount, open, picture, picture_merged};
use crate::support::{private_mounts, sh};

fn options(size: Size) -> Options {
    Options { size, uuid: *b"0123456789abcdef", label: b"tree".to_vec(), limits: Limits::default() }
}

fn write(tree: &Merged, path: &Path, size: Size) -> cloister_view::Result<ext4::Summary> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    ext4::write(&file, tree, &options(size))
}

fn erofs_of(dir: &Path, source: &str) -> Merged {
    let file = dir.join(format!("{source}.erofs"));
    // `mkfs.erofs` keeps holes only in chunked files.
    mkfs_erofs(&dir.join(source), &file, &["-b4096", "--chunksize=4096"]);
    Merged::new(vec![open(&file)]).unwrap()
}

#[test]
fn every_kind_of_entry_arrives() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    everything(&dir.path().join("source"));
    let tree = erofs_of(dir.path(), "source");
    let expected = picture_merged(&tree);
    for (index, size) in [Size::Exact, Size::Slack(20 << 20), Size::Total(300 << 20)].into_iter().enumerate()
    {
        let image = dir.path().join(format!("{index}.ext4"));
        let summary = write(&tree, &image, size).unwrap();
        assert_eq!(summary.bytes, fs::metadata(&image).unwrap().len());
        fsck_ext4(&image);
        let on = dir.path().join(format!("mount{index}"));
        mount(&image, &on, "ext4");
        assert_same(&expected, &picture(&on));
        // Holes stay holes.
        assert!(fs::metadata(on.join("only-holes")).unwrap().blocks() == 0);
        assert!(fs::metadata(on.join("holes")).unwrap().blocks() <= 24);

        let first = fs::read(&image).unwrap();
        write(&tree, &image, size).unwrap();
        assert!(first == fs::read(&image).unwrap(), "the second file differs");
    }
    let error = write(&tree, &dir.path().join("small"), Size::Total(1 << 20)).unwrap_err().to_string();
    assert!(error.contains("it needs"), "{error}");
}

#[test]
fn a_folder_of_100_000_entries_and_a_file_of_thousands_of_extents() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        r#"
        mkdir -p source/many source/dirs
        (cd source/many; seq -f 'a-rather-usual-file-name-%06g.txt' 1 100000 | xargs touch)
        (cd source/dirs; seq 1 300 | xargs mkdir)
        python3 -c "
with open('source/extents', 'wb') as f:
    for i in range(2000):
        f.seek(i * 8192)
        f.write(b'x' * 4096)"
        "#,
    );
    let tree = erofs_of(dir.path(), "source");
    let image = dir.path().join("image");
    write(&tree, &image, Size::Exact).unwrap();
    fsck_ext4(&image);
    let on = dir.path().join("mount");
    mount(&image, &on, "ext4");
    // Names only: looking each of them up in a linear directory is quadratic.
    let mut names: Vec<_> = fs::read_dir(on.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 100_000);
    assert_eq!(names[99_999], "a-rather-usual-file-name-100000.txt");
    assert_eq!(fs::read_dir(on.join("dirs")).unwrap().count(), 300);
    assert_eq!(fs::metadata(on.join("dirs")).unwrap().nlink(), 302);
    let extents = |root: &Path| fs::read(root.join("extents")).unwrap();
    assert!(extents(&on) == extents(&dir.path().join("source")));
    assert_eq!(
        fs::metadata(on.join("extents")).unwrap().blocks(),
        2000 * 8 + 7 * 8,
        "2000 blocks, six of extents, one of indexes"
    );
}

#[test]
fn what_ext4_cannot_hold_is_named() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    // Only tmpfs takes such a value.
    sh(
        dir.path(),
        "mkdir source; mount -t tmpfs tmpfs source; mkdir source/sub; touch source/sub/f
         setfattr -n security.big -v $(head -c 6000 /dev/zero | tr '\\0' x) source/sub/f",
    );
    let error = write(&erofs_of(dir.path(), "source"), &dir.path().join("i"), Size::Exact).unwrap_err();
    assert!(error.to_string().contains("\"sub/f\" as ext4"), "{error}");
}
