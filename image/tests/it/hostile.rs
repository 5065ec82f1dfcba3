//! Images that lie, loop or overflow get one line and leave nothing.

use std::collections::BTreeMap;

use cloister_image::source::Request;
use cloister_image::{Digest, Store};
use serde_json::{Value, json};

use crate::common::*;

/// Imports and expects a one-line error with `part`, and a store as empty as before.
fn refused(bytes: &[u8], request: &Request, part: &str) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let before = contents(&store);
    let error = import_bytes(&store, bytes, request).unwrap_err().to_string();
    assert!(error.contains(part), "{part:?} is not in: {error}");
    assert!(!error.contains('\n') && error.len() < 600, "{error}");
    assert_eq!(contents(&store), before, "{error}");
    assert!(store.list().unwrap().is_empty());
}

fn one() -> TestImage {
    TestImage::new(host_arch(), &[(tar(&[("a", b"x")]), TAR_GZIP)])
}

/// An archive of one manifest made from `image`'s by `change`.
fn with_manifest(image: &TestImage, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    change(&mut manifest);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let mut blobs = image.blobs.clone();
    blobs.insert(Digest::of(&bytes), bytes.clone());
    archive(&layout(&[descriptor(OCI_MANIFEST, &bytes)], &[&blobs]))
}

fn refused_manifest(part: &str, change: impl FnOnce(&mut Value)) {
    refused(&with_manifest(&one(), change), &named("x"), part);
}

#[test]
fn lying_sizes_and_digests() {
    refused_manifest("its descriptor says", |m| m["config"]["size"] = json!(5));
    refused_manifest("its descriptor says", |m| m["layers"][0]["size"] = json!(7));
    let other = Digest::of(b"other").to_string();
    refused_manifest("there is no blobs/sha256", |m| m["layers"][0]["digest"] = json!(other.clone()));
    // The right name for the wrong bytes.
    let image = one();
    for wrong in image.blobs.keys() {
        let mut blobs = image.blobs.clone();
        let len = blobs[wrong].len();
        blobs.insert(*wrong, vec![b' '; len]);
        refused(&archive(&layout(&[image.descriptor()], &[&blobs])), &named("x"), "digest");
    }
}

#[test]
fn a_config_that_names_other_layers() {
    let image = one();
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    for (diff_ids, part) in [
        (json!([Digest::of(b"?").to_string()]), "diff ID"),
        (json!([]), "lists 0 diff IDs"),
        (json!(["sha512:00"]), "diff ID"),
    ] {
        config["rootfs"]["diff_ids"] = diff_ids;
        let bytes = serde_json::to_vec(&config).unwrap();
        let mut changed = image.clone();
        changed.blobs.insert(Digest::of(&bytes), bytes.clone());
        refused(
            &with_manifest(&changed, |m| m["config"] = descriptor(OCI_CONFIG, &bytes)),
            &named("x"),
            part,
        );
    }
}

#[test]
fn thousands_of_layers_and_giant_documents() {
    refused_manifest("layers is more than the limit of 128", |m| {
        let layer = m["layers"][0].clone();
        m["layers"] = Value::Array(vec![layer; 5000]);
    });
    refused_manifest("bytes is more than the limit", |m| m["layers"][0]["size"] = json!(1_u64 << 60));
    refused_manifest("bytes is more than the limit", |m| {
        let mut layer = m["layers"][0].clone();
        layer["size"] = json!(u64::MAX);
        m["layers"] = json!([layer.clone(), layer]);
    });
    refused_manifest("limit of 4194304", |m| m["annotations"] = json!({"a": "x".repeat(5 << 20)}));
    refused_manifest("limit of 8388608", |m| m["config"]["size"] = json!(100 << 20));
    let entries = vec![one().descriptor(); 5000];
    let mut files = layout(&[], &[&one().blobs]);
    files.retain(|(path, _)| path != "index.json");
    files.push((
        "index.json".to_owned(),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap(),
    ));
    refused(&archive(&files), &named("x"), "entries is more than the limit of 1024");
}

#[test]
fn indexes_that_never_end() {
    // Forty indexes, each inside the next.
    let mut blobs: BTreeMap<Digest, Vec<u8>> = one().blobs;
    let mut inner = descriptor(OCI_MANIFEST, &one().manifest);
    for _ in 0..40 {
        let bytes = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [inner]})).unwrap();
        inner = descriptor(OCI_INDEX, &bytes);
        blobs.insert(Digest::of(&bytes), bytes);
    }
    refused(&archive(&layout(&[inner], &[&blobs])), &named("x"), "nested indexes");
    // A loop needs a file that has not its digest.
    let fake = Digest::of(b"loop");
    let entry = json!({"mediaType": OCI_INDEX, "digest": fake.to_string(), "size": 0});
    let body = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry.clone()]})).unwrap();
    let blobs = BTreeMap::from([(fake, body)]);
    refused(&archive(&layout(&[entry], &[&blobs])), &named("x"), "descriptor says 0");
    // One index with the same manifest for no platform over and over.
    let wide = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": vec![json!({"mediaType": OCI_INDEX, "digest": fake.to_string(), "size": 3}); 50]})).unwrap();
    let blobs = BTreeMap::from([(Digest::of(&wide), wide.clone()), (fake, b"{}\n".to_vec())]);
    refused(&archive(&layout(&[descriptor(OCI_INDEX, &wide)], &[&blobs])), &named("x"), "digest");
}

#[test]
fn what_is_not_a_runnable_image() {
    for (kind, part) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("application/x-evil\nlog line", "unknown layer type"),
    ] {
        refused_manifest(part, |m| m["layers"][0]["mediaType"] = json!(kind));
    }
    refused_manifest("an artifact of type application/vnd.cncf.helm.config.v1+json", |m| {
        m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    });
    refused_manifest("docker schema 1", |m| {
        *m = json!({"schemaVersion": 1, "fsLayers": [], "mediaType": OCI_MANIFEST})
    });
    refused_manifest("both `manifests` and `layers`", |m| m["manifests"] = json!([]));
    refused_manifest("does not fit its content", |m| m["mediaType"] = json!(OCI_INDEX));
    refused_manifest("only sha256", |m| {
        m["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)))
    });
    let windows = with_config(|c| c["os"] = json!("windows"));
    refused(&windows, &named("x"), "only Linux images run here");
}

/// An archive of one image whose config is changed.
fn with_config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut image = one();
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    change(&mut config);
    let bytes = serde_json::to_vec(&config).unwrap();
    image.blobs.insert(Digest::of(&bytes), bytes.clone());
    with_manifest(&image, |m| m["config"] = descriptor(OCI_CONFIG, &bytes))
}

#[test]
fn archives_with_tricks() {
    refused(&archive(&[("hello".to_owned(), b"x".to_vec())]), &named("x"), "neither an OCI layout");
    refused(b"not a tar", &named("x"), "test input");
    refused(&[], &named("x"), "neither an OCI layout");
    refused(b"BZh91AY&SY", &named("x"), "bzip2");
    refused(b"\xfd7zXZ\0\0\x04", &named("x"), "xz");
    refused(
        &gzip(&archive(&layout(&[one().descriptor()], &[&one().blobs])))[..200],
        &named("x"),
        "test input",
    );
    refused(&archive(&[("repositories".to_owned(), b"{}".to_vec())]), &named("x"), "docker older than 1.10");
    for (config, layer) in
        [("../../etc/passwd", "l"), ("/etc/passwd", "l"), ("c.json", "/etc/shadow"), ("c.json", "..")]
    {
        let list = json!([{"Config": config, "RepoTags": ["x:1"], "Layers": [layer]}]);
        let files = [
            ("manifest.json".to_owned(), serde_json::to_vec(&list).unwrap()),
            ("c.json".to_owned(), one().config),
        ];
        refused(&archive(&files), &Request::default(), "there is no");
    }
    // A name that is no reference is no name.
    let bytes = archive(&docker(&[(&one(), &["../../x"])], <[u8]>::to_vec));
    refused(&bytes, &Request::default(), "gives this image no name");
}

#[test]
fn a_config_with_another_digest_than_its_name() {
    let image = one();
    let mut files = docker(&[(&image, &["x:1"])], <[u8]>::to_vec);
    let at = files.iter().position(|(path, _)| path.ends_with(".json") && path != "manifest.json").unwrap();
    files[at].1.push(b' ');
    refused(&archive(&files), &Request::default(), "digest is");
}

#[test]
fn a_layout_folder_with_links_is_refused() {
    let image = one();
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    write_dir(&real, &layout(&[image.descriptor()], &[&image.blobs]));
    let evil = dir.path().join("evil");
    std::fs::create_dir(&evil).unwrap();
    for name in ["oci-layout", "index.json"] {
        std::fs::copy(real.join(name), evil.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(real.join("blobs"), evil.join("blobs")).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let error = import_path(&store, &evil, &named("x")).unwrap_err().to_string();
    assert!(error.contains("links are not followed"), "{error}");
}

#[test]
fn one_bad_layer_among_good_ones_leaves_nothing() {
    let image = TestImage::usual();
    let bad = *image.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let mut blobs = image.blobs.clone();
    let bytes = blobs.get_mut(&bad).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(import_bytes(&store, &archive(&layout(&[image.descriptor()], &[&blobs])), &named("x")).is_err());
    assert!(store.list().unwrap().is_empty());
    // Whole layers may stay, they are verified; the bad one and every temporary file are gone.
    assert!(!contents(&store).iter().any(|path| path.starts_with("tmp/") || path.contains(&bad.hex())));
    // And the good image comes in afterwards.
    import_bytes(&store, &archive(&layout(&[image.descriptor()], &[&image.blobs])), &named("x")).unwrap();
    store.prune(true, None).unwrap();
    assert_eq!(store.usage().unwrap().total(), 0);
}

#[test]
fn a_bomb_around_the_archive_is_stopped_early() {
    let zeros = vec![0; 8 << 20];
    for bomb in [gzip(&zeros), zstd(&zeros)] {
        let mut request = named("x");
        request.options.limits.layer.ratio = 10;
        request.options.limits.layer.ratio_floor = 1 << 20;
        refused(&bomb, &request, "bytes is more than the limit of 1048576");
        let mut request = named("x");
        request.options.limits.archive_bytes = 1 << 20;
        refused(&bomb, &request, "bytes is more than the limit of 1048576");
    }
}
