//! Scratch disks under the guest's use: an overlay's upper and work folders.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use cloister_view::scratch;

use crate::support::{fsck_ext4, private_mounts, run, sh};

#[test]
fn empty_disks_of_all_sizes_are_clean_sparse_and_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [1 << 20, (10 << 20) + 5, 128 << 20, (128 << 20) + 4096, 10 << 30, 1 << 40];
    for size in sizes {
        let path = dir.path().join("disk");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        // What stood there before must not shine through.
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 1 << 16], 500_000).unwrap();
        scratch::create(&file, size).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), size / 4096 * 4096);
        assert!(meta.blocks() * 512 < (1 << 20), "{size}: {} bytes allocated", meta.blocks() * 512);
        fsck_ext4(&path);
        if size < 1 << 30 {
            let first = fs::read(&path).unwrap();
            scratch::create(&file, size).unwrap();
            assert!(first == fs::read(&path).unwrap());
        }
    }
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(scratch::create(&file, 4096).unwrap_err().to_string().contains("at least"));
    assert!(scratch::create(&file, 17 << 40).is_err());
}

#[test]
fn the_kernel_uses_it_as_upper_and_work_of_an_overlay() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let file = File::options().read(true).write(true).create_new(true).open(&disk).unwrap();
    scratch::create(&file, 1 << 30).unwrap();
    drop(file);
    sh(
        dir.path(),
        r#"
        mkdir mnt low; touch low/hidden
        mount -t ext4 -o loop disk mnt
        mkdir mnt/upper mnt/work mnt/merged
        mount -t overlay overlay -o lowerdir=low,upperdir=mnt/upper,workdir=mnt/work mnt/merged
        cp -a /usr/include/linux mnt/merged/; diff -r /usr/include/linux mnt/merged/linux
        mkdir mnt/merged/many; (cd mnt/merged/many; seq 1 5000 | xargs touch)
        setfattr -n user.x -v y mnt/merged/many/1; setfattr -n security.y -v z mnt/merged/many/1
        rm mnt/merged/hidden; test -c mnt/upper/hidden
        head -c 50M /dev/zero > mnt/merged/big; rm -r mnt/merged/linux
        umount mnt/merged mnt
        "#,
    );
    fsck_ext4(&disk);
    assert!(run("dumpe2fs", ["-h", disk.to_str().unwrap()]).contains("Filesystem state:         clean"));
}
