//! What comes out of the store can go in again, here and elsewhere.

use std::path::Path;

use crate::common::*;
use cloister_image::export::{Format, Output, export};
use cloister_image::source::Request;
use cloister_image::store::Options;
use cloister_image::{Digest, Store};

fn import(dir: &Path, options: Options) -> (Store, TestImage) {
    let image = TestImage::usual();
    let store = Store::open_with(dir.join("store"), options).unwrap();
    import_bytes(&store, &archive(&layout(&[entry(&image, None, None)], &[&image.blobs])), &named("app:1"))
        .unwrap();
    (store, image)
}

#[test]
fn an_oci_archive_has_the_digests_of_the_import() {
    let dir = tempfile::tempdir().unwrap();
    let (store, image) = import(dir.path(), Options::default());
    let out = dir.path().join("out.tar");
    let done =
        export(&store, &store.open_image("app:1").unwrap(), Format::OciArchive, Output::Path(out.clone()))
            .unwrap();
    assert_eq!(done.manifest, Some(image.digest()));
    assert_eq!(done.bytes, std::fs::metadata(&out).unwrap().len());
    let other = Store::open(dir.path().join("other")).unwrap();
    let records = import_path(&other, &out, &Request::default()).unwrap();
    assert_eq!((records[0].manifest, records[0].name.as_str()), (image.digest(), "docker.io/library/app:1"));
    let inspect = std::process::Command::new("skopeo")
        .args(["inspect", "--raw", &format!("oci-archive:{}", out.display())])
        .output()
        .unwrap();
    assert_eq!(inspect.stdout, image.manifest, "{}", String::from_utf8_lossy(&inspect.stderr));
    // No temporary file beside it.
    assert_eq!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
            .count(),
        0
    );
}

#[test]
fn without_kept_blobs_the_archive_is_uncompressed_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (store, image) = import(dir.path(), Options { keep_blobs: false });
    let kept = Store::open(dir.path().join("kept")).unwrap();
    assert!(store.usage().unwrap().blobs < 20_000, "only manifest and config");
    let out = dir.path().join("out.tar");
    let done =
        export(&store, &store.open_image("app:1").unwrap(), Format::OciArchive, Output::Path(out.clone()))
            .unwrap();
    assert_ne!(done.manifest, Some(image.digest()));
    let records = import_path(&kept, &out, &named("again")).unwrap();
    assert_eq!(Some(records[0].manifest), done.manifest);
    assert_eq!(records[0].config, Digest::of(&image.config));
}

#[test]
fn a_docker_archive_loads_here_and_in_skopeo() {
    let dir = tempfile::tempdir().unwrap();
    let (store, image) = import(dir.path(), Options::default());
    let out = dir.path().join("docker.tar");
    export(&store, &store.open_image("app:1").unwrap(), Format::DockerArchive, Output::Path(out.clone()))
        .unwrap();
    let records = import_path(&store, &out, &Request::default()).unwrap();
    assert_eq!(records[0].config, Digest::of(&image.config));
    let to = format!("dir:{}", dir.path().join("copy").display());
    let from = format!("docker-archive:{}:app:1", out.display());
    let status = std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", &from, &to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_failed_export_leaves_no_file_and_keeps_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = import(dir.path(), Options::default());
    let image = store.open_image("app:1").unwrap();
    let blob = store.root().join("blobs/sha256").join(image.record.layers[1].blob.hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let out = dir.path().join("out.tar");
    std::fs::write(&out, "old").unwrap();
    let error =
        export(&store, &image, Format::OciArchive, Output::Path(out.clone())).unwrap_err().to_string();
    assert!(error.contains("damaged in the store"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn the_merged_file_system_comes_out_in_three_forms() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = import(dir.path(), Options::default());
    let image = store.open_image("app:1").unwrap();
    let run = |program: &str, args: &[&str], file: &Path| {
        let output = std::process::Command::new(program).args(args).arg(file).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let out = dir.path().join("root.ext4");
    export(&store, &image, Format::Ext4, Output::Path(out.clone())).unwrap();
    run("e2fsck", &["-fn"], &out);
    assert_eq!(run("debugfs", &["-R", "cat /etc/passwd"], &out), b"other\n");
    let out = dir.path().join("root.tar");
    let done = export(&store, &image, Format::Tar, Output::Path(out.clone())).unwrap();
    assert_eq!(done.bytes, std::fs::metadata(&out).unwrap().len());
    let listing = String::from_utf8(run("tar", &["-tf"], &out)).unwrap();
    for name in ["bin/sh", "data", "etc/passwd", "p", "z"] {
        assert_eq!(
            listing.lines().filter(|line| line.trim_start_matches("./") == name).count(),
            1,
            "{listing}"
        );
    }
    // To a stream as well, byte for byte the same file.
    let out = dir.path().join("root.erofs");
    export(&store, &image, Format::Erofs, Output::Path(out.clone())).unwrap();
    let streamed = dir.path().join("streamed.erofs");
    let stream = Box::new(std::fs::File::create(&streamed).unwrap());
    export(&store, &image, Format::Erofs, Output::Stream(stream)).unwrap();
    assert!(std::fs::read(out).unwrap() == std::fs::read(streamed).unwrap());
}
