//! Whole trees as tar, unpacked by GNU tar.

use std::fs::{self, File};

use cloister_layer::{Expected, convert};
use cloister_view::merged::{Limits, Merged};
use cloister_view::tar::write;

use crate::support::{
    assert_same, everything, mkfs_erofs, open, picture, picture_merged, private_mounts, sh,
};

#[test]
fn gnu_tar_unpacks_every_kind_of_entry() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    everything(&dir.path().join("source"));
    let from = dir.path().join("from.erofs");
    mkfs_erofs(&dir.path().join("source"), &from, &["-b4096", "--chunksize=4096"]);
    let tree = Merged::new(vec![open(&from)]).unwrap();
    let archive = dir.path().join("archive.tar");
    let summary = write(File::create(&archive).unwrap(), &tree, Limits::default()).unwrap();
    assert_eq!(summary.sockets, 1);
    // Holes are not stored.
    assert!(fs::metadata(&archive).unwrap().len() < 10 << 20);
    sh(
        dir.path(),
        "mkdir out; tar --extract --file archive.tar -C out --xattrs --xattrs-include='*' --numeric-owner -p
         test $(stat -c %b out/only-holes) = 0",
    );
    let mut expected = picture_merged(&tree);
    expected.remove(&b"socket"[..]);
    assert_same(&picture(&dir.path().join("out")), &expected);

    // Our own layer reader takes it back.
    let layer = dir.path().join("layer.erofs");
    let out = File::options().read(true).write(true).create_new(true).open(&layer).unwrap();
    let blob = File::open(&archive).unwrap();
    convert(blob, &Expected::default(), &out, &cloister_layer::Limits::default(), &|_| ()).unwrap();
    assert_same(&picture_merged(&Merged::new(vec![open(&layer)]).unwrap()), &expected);

    let mut again = Vec::new();
    write(&mut again, &tree, Limits::default()).unwrap();
    assert!(again == fs::read(&archive).unwrap(), "the second archive differs");
}

#[test]
fn a_full_device_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), "mkdir source; head -c 1M /dev/zero > source/f");
    let from = dir.path().join("from.erofs");
    mkfs_erofs(&dir.path().join("source"), &from, &["-b512"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = write(full, &Merged::new(vec![open(&from)]).unwrap(), Limits::default()).unwrap_err();
    assert!(error.to_string().starts_with("write the tar archive: "), "{error}");
}
