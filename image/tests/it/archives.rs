//! Imports from archives and folders, as the tools of the field write them.

use crate::common::*;
use cloister_image::source::Request;
use cloister_image::{Digest, Store};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

#[test]
fn an_oci_archive_comes_in_under_its_own_manifest() {
    let image = TestImage::usual();
    let files = layout(&[entry(&image, None, None)], &[&image.blobs]);
    let plain = archive(&files);
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let (_dir, store) = store();
        let records = import_bytes(&store, &bytes, &named("app:1")).unwrap();
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!(record.name, "docker.io/library/app:1");
        assert_eq!(record.manifest, image.digest());
        assert_eq!(record.config, Digest::of(&image.config));
        assert_eq!(record.layers.len(), 4);
        assert_eq!(store.list().unwrap(), records);
        for (layer, tar) in record.layers.iter().zip(&image.tars) {
            assert_eq!(layer.diff_id, Digest::of(tar));
        }
        let opened = store.open_image("app:1").unwrap();
        assert_eq!(opened.config.entrypoint, ["/init"]);
        assert_eq!(opened.layer_files().len(), 4);
        for (file, tar) in opened.layer_files().iter().zip(&image.tars) {
            let range = file.tar().unwrap();
            assert_eq!(range.len, tar.len() as u64);
        }
    }
}

#[test]
fn a_layout_folder_and_its_archive_give_the_same_image() {
    let image = TestImage::usual();
    let files = layout(&[entry(&image, Some("registry.example/app:2"), Some(host_arch()))], &[&image.blobs]);
    let (dir, store) = store();
    write_dir(&dir.path().join("layout"), &files);
    let records = import_path(&store, &dir.path().join("layout"), &Request::default()).unwrap();
    assert_eq!(records[0].name, "registry.example/app:2");
    std::fs::write(dir.path().join("layout.tar"), archive(&files)).unwrap();
    let again = import_path(&store, &dir.path().join("layout.tar"), &Request::default()).unwrap();
    assert_eq!(again[0].manifest, records[0].manifest);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn docker_archives_give_the_same_manifest_however_packed() {
    let image = TestImage::usual();
    let mut manifests = Vec::new();
    for pack in [|tar: &[u8]| tar.to_vec(), |tar: &[u8]| gzip(tar), |tar: &[u8]| zstd(tar)] {
        let (dir, store) = store();
        let bytes = archive(&docker(&[(&image, &["app:1", "app:latest"])], pack));
        let streamed = import_bytes(&store, &bytes, &Request::default()).unwrap();
        assert_eq!(
            streamed.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
            ["docker.io/library/app:1", "docker.io/library/app:latest"]
        );
        std::fs::write(dir.path().join("a.tar"), gzip(&bytes)).unwrap();
        let records = import_path(&store, &dir.path().join("a.tar"), &named("x")).unwrap();
        assert_eq!(records[0].manifest, streamed[0].manifest);
        assert_eq!(records[0].config, Digest::of(&image.config));
        manifests.push(records[0].manifest);
    }
    assert!(manifests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn layers_that_are_links_to_other_layers_are_followed() {
    // As docker before 25 writes it for an image whose layers repeat.
    let image = TestImage::new(host_arch(), &[(tar(&[("a", b"x")]), TAR), (tar(&[("a", b"x")]), TAR)]);
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, &config, &image.config);
    add(&mut builder, "one/layer.tar", &image.tars[0]);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "two/layer.tar", "../one/layer.tar").unwrap();
    let list = serde_json::json!([{"Config": config, "RepoTags": null, "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    add(&mut builder, "manifest.json", &serde_json::to_vec(&list).unwrap());
    let (_dir, store) = store();
    let records = import_bytes(&store, &builder.into_inner().unwrap(), &named("twice")).unwrap();
    assert_eq!(records[0].layers.len(), 2);
    assert_eq!(records[0].layers[0], records[0].layers[1]);
}

#[test]
fn several_images_are_all_imported_or_chosen_by_name() {
    let one = TestImage::new(host_arch(), &[(tar(&[("base", b"b")]), TAR), (tar(&[("one", b"1")]), TAR)]);
    let two = TestImage::new(host_arch(), &[(tar(&[("base", b"b")]), TAR), (tar(&[("two", b"2")]), TAR)]);
    let bytes = archive(&docker(&[(&one, &["one:1"]), (&two, &["reg.example/two:2"])], <[u8]>::to_vec));
    let (_dir, both) = store();
    assert_eq!(import_bytes(&both, &bytes, &Request::default()).unwrap().len(), 2);
    assert_eq!(both.list().unwrap().len(), 2);
    let (_dir, by_name) = store();
    let picked = import_bytes(&by_name, &bytes, &named("one:1")).unwrap();
    assert_eq!(picked[0].config, Digest::of(&one.config));
    let select = Request { select: Some("reg.example/two:2".to_owned()), ..named("mine") };
    let picked = import_bytes(&by_name, &bytes, &select).unwrap();
    assert_eq!(
        (picked[0].name.as_str(), picked[0].config),
        ("docker.io/library/mine:latest", Digest::of(&two.config))
    );
    let error = import_bytes(&by_name, &bytes, &named("three")).unwrap_err().to_string();
    assert!(error.contains("it holds one:1, reg.example/two:2"), "{error}");
}

#[test]
fn the_platform_is_chosen_also_in_nested_and_flat_indexes() {
    let image = |arch: &str| TestImage::new(arch, &[(tar(&[("arch", arch.as_bytes())]), TAR_GZIP)]);
    let (amd, arm) = (image("amd64"), image("arm64"));
    let inner = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 2, "platform": {"os": "unknown", "architecture": "unknown"},
         "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        entry(&amd, None, Some("amd64")), entry(&arm, None, Some("arm64")),
    ]});
    let inner = serde_json::to_vec(&inner).unwrap();
    let outer = serde_json::to_vec(
        &serde_json::json!({"schemaVersion": 2, "manifests": [descriptor(OCI_INDEX, &inner)]}),
    )
    .unwrap();
    let extra = [inner.clone(), outer.clone()].into_iter().map(|bytes| (Digest::of(&bytes), bytes)).collect();
    let nested = layout(&[descriptor(OCI_INDEX, &outer)], &[&amd.blobs, &arm.blobs, &extra]);
    let flat = layout(
        &[entry(&amd, Some("x:1"), Some("amd64")), entry(&arm, Some("x:1"), Some("arm64"))],
        &[&amd.blobs, &arm.blobs],
    );
    for files in [nested, flat] {
        for (platform, expected) in [("linux/amd64", &amd), ("linux/arm64/v8", &arm)] {
            let (_dir, store) = store();
            let mut request = named("app");
            request.options.platform = Some(platform.parse().unwrap());
            let records = import_bytes(&store, &archive(&files), &request).unwrap();
            assert_eq!(records[0].manifest, expected.digest(), "{platform}");
        }
        let (_dir, store) = store();
        let mut request = named("app");
        request.options.platform = Some("linux/s390x".parse().unwrap());
        let error = import_bytes(&store, &archive(&files), &request).unwrap_err().to_string();
        assert!(error.contains("no image for linux/s390x; offered: linux/amd64, linux/arm64"), "{error}");
    }
}

#[test]
fn layers_in_the_store_are_not_read_again() {
    let image = TestImage::usual();
    let (_dir, store) = store();
    import_bytes(&store, &archive(&layout(&[entry(&image, None, None)], &[&image.blobs])), &named("a"))
        .unwrap();
    // The second archive has no layers at all.
    let mut blobs = image.blobs.clone();
    blobs.retain(|_, bytes| *bytes == image.config || *bytes == image.manifest);
    let records =
        import_bytes(&store, &archive(&layout(&[entry(&image, None, None)], &[&blobs])), &named("b"))
            .unwrap();
    assert_eq!(records[0].manifest, image.digest());
}

#[test]
fn archives_written_by_skopeo_come_in() {
    // gzip only: skopeo cannot put zstd into docker archives, and compresses plain layers on the way into OCI ones.
    let image =
        TestImage::new(host_arch(), &[(tar(&[("a", b"1")]), TAR_GZIP), (tar(&[("b", b"2")]), TAR_GZIP)]);
    let (dir, store) = store();
    let source = dir.path().join("layout");
    write_dir(&source, &layout(&[entry(&image, Some("x"), None)], &[&image.blobs]));
    let from = format!("oci:{}:x", source.display());
    let docker_tar = dir.path().join("docker.tar");
    let oci_tar = dir.path().join("oci.tar");
    for to in [
        format!("docker-archive:{}:reg.example/app:1", docker_tar.display()),
        format!("oci-archive:{}:app:2", oci_tar.display()),
    ] {
        let status = std::process::Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", &from, &to])
            .status()
            .unwrap();
        assert!(status.success(), "{to}");
    }
    let by_docker = import_path(&store, &docker_tar, &Request::default()).unwrap();
    assert_eq!(by_docker[0].name, "reg.example/app:1");
    assert_eq!(by_docker[0].config, Digest::of(&image.config));
    let by_oci = import_path(&store, &oci_tar, &named("app:2")).unwrap();
    assert_eq!(by_oci[0].manifest, image.digest());
}

#[test]
fn a_pipe_that_delivers_single_bytes_is_read() {
    struct Slow(std::io::Cursor<Vec<u8>>);
    impl std::io::Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = buffer.len().min(1);
            self.0.read(&mut buffer[..n])
        }
    }
    let image = TestImage::new(host_arch(), &[(tar(&[("a", b"1")]), TAR_GZIP)]);
    let bytes = gzip(&archive(&layout(&[image.descriptor()], &[&image.blobs])));
    let (_dir, store) = store();
    let input =
        cloister_image::source::Input::Stream(Box::new(Slow(std::io::Cursor::new(bytes))), "slow".to_owned());
    let records =
        cloister_image::source::archive::import(&store, input, &named("a"), &cloister_image::Silent).unwrap();
    assert_eq!(records[0].manifest, image.digest());
}
