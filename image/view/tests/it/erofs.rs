//! Whole trees as one EROFS file, checked by fsck.erofs and read by the kernel.

use std::fs::{self, File};
use std::path::Path;

use cloister_view::erofs::{Options, write};
use cloister_view::merged::Merged;

use crate::support::{
    assert_same, erofs_tool, everything, mkfs_erofs, mount, open, picture, picture_merged, private_mounts,
    run,
};

fn file(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

#[test]
fn every_kind_of_entry_arrives() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    everything(&dir.path().join("source"));
    for (index, options) in [&["-b4096", "--chunksize=4096"][..], &["-b512"]].into_iter().enumerate() {
        let from = dir.path().join("from.erofs");
        mkfs_erofs(&dir.path().join("source"), &from, options);
        let tree = Merged::new(vec![open(&from)]).unwrap();
        // Of its own: the one before is mounted still, and the kernel may be reading ahead in it.
        let to = dir.path().join(format!("to-{index}.erofs"));
        let summary = write(&file(&to), &tree, &Options::new([7; 16])).unwrap();
        assert_eq!(summary.bytes, fs::metadata(&to).unwrap().len());
        run(erofs_tool("fsck.erofs"), [&to]);
        let expected = picture_merged(&tree);
        assert_same(&picture_merged(&Merged::new(vec![open(&to)]).unwrap()), &expected);
        let on = dir.path().join(format!("mount-{index}"));
        mount(&to, &on, "erofs");
        assert_same(&picture(&on), &expected);

        let first = fs::read(&to).unwrap();
        let again = dir.path().join("again.erofs");
        write(&file(&again), &tree, &Options::new([7; 16])).unwrap();
        assert!(first == fs::read(&again).unwrap(), "the second file differs");
    }
}
