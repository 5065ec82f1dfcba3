//! The reader against files of `mkfs.erofs`, as the kernel and the source folder show them.

use cloister_view::merged::Merged;

use crate::support::{
    assert_same, everything, mkfs_erofs, mount, open, picture, picture_merged, private_mounts,
};

#[test]
fn files_of_mkfs_read_as_the_kernel_reads_them() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    everything(&source);
    let variants: [&[&str]; 5] = [
        &["-b4096"],
        &["-b512"],
        &["-b1024", "-x-1"],
        &["-b4096", "-Enoinline_data", "-x1"],
        &["-b4096", "--chunksize=8192", "-Eforce-chunk-indexes"],
    ];
    for (index, options) in variants.iter().enumerate() {
        let file = dir.path().join(format!("{index}.erofs"));
        mkfs_erofs(&source, &file, options);
        let on = dir.path().join(format!("mount-{index}"));
        mount(&file, &on, "erofs");
        let ours = picture_merged(&Merged::new(vec![open(&file)]).unwrap());
        assert!(ours.len() > 3000);
        assert_same(&ours, &picture(&on));
    }
}
