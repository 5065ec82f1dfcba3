//! The partitioned disk: tools find nothing to complain about, the kernel mounts every partition.

use std::fs::File;
use std::path::Path;

use cloister_layer::Digest;
use cloister_view::disk::{ALIGN_1M, ALIGN_4K, Layer, layout};

use crate::support::{mkfs_erofs, private_mounts, run, sh};

fn disk_of(dir: &Path, count: usize, align: u64) {
    let files: Vec<File> = (1..=count)
        .map(|number| {
            let source = dir.join("source");
            std::fs::create_dir_all(&source).unwrap();
            std::fs::write(source.join("number"), format!("{number}\n").repeat(number * 7)).unwrap();
            let path = dir.join(format!("{number}.erofs"));
            mkfs_erofs(&source, &path, &["-b512", "--quiet"]);
            File::open(path).unwrap()
        })
        .collect();
    let layers = files.iter().enumerate().map(|(source, file)| Layer {
        source,
        len: file.metadata().unwrap().len(),
        diff_id: Digest::of(source.to_string().as_bytes()),
    });
    let disk = layout(layers.collect(), align).unwrap();
    let out = File::create(dir.join("disk")).unwrap();
    disk.write_to(&out, |index| Ok(&files[*index])).unwrap();
}

#[test]
fn partitioning_tools_accept_both_copies_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    for (count, align) in [(1, ALIGN_4K), (3, ALIGN_1M), (140, ALIGN_4K)] {
        disk_of(dir.path(), count, align);
        let disk = dir.path().join("disk");
        let said = run("sfdisk", ["--verify", disk.to_str().unwrap()]);
        assert!(said.contains("No errors detected"), "{said}");
        let listed = run("partx", ["-g", "-o", "NR,NAME,SECTORS", "--show", disk.to_str().unwrap()]);
        assert_eq!(listed.lines().count(), count);
        assert!(listed.contains(&format!("{count} layer {count}")), "{listed}");
        // The backup alone has to do as well.
        sh(
            dir.path(),
            "cp disk half; dd if=/dev/zero of=half bs=512 seek=1 count=1 conv=notrunc status=none
             sfdisk --dump half 2>&1 | grep -q 'name=\"layer 1\"'",
        );
    }
}

#[test]
fn the_kernel_mounts_partition_n_as_layer_n() {
    private_mounts();
    let dir = tempfile::tempdir().unwrap();
    disk_of(dir.path(), 131, ALIGN_4K);
    sh(
        dir.path(),
        r#"
        loop=$(losetup --find --show --read-only disk)
        # A loop device keeps partitions that were added by hand.
        trap 'partx --delete $loop; losetup -d $loop' EXIT
        # Not `losetup --partscan`: a host kernel may be built without GPT (the guest's is not).
        partx --add $loop
        name=${loop#/dev/}
        mkdir -p mnt
        for n in 1 2 100 131; do
            # There may be no udev to make the node.
            mknod part$n b $(tr : ' ' < /sys/block/$name/${name}p$n/dev)
            mount -t erofs -o ro part$n mnt
            test "$(head -1 mnt/number)" = $n
            umount mnt
        done
        "#,
    );
}
