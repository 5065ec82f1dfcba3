//! Names, pruning, damage, other users.

use cloister_image::{Digest, Error, ImageRecord, Store};

use crate::common::*;

fn put(store: &Store, name: &str, seed: u64) -> ImageRecord {
    let base = tar(&[("base", &noise(200_000, 99))]);
    let image =
        TestImage::new(host_arch(), &[(base, TAR_GZIP), (tar(&[("own", &noise(400_000, seed))]), TAR_GZIP)]);
    import_bytes(store, &archive(&layout(&[image.descriptor()], &[&image.blobs])), &named(name))
        .unwrap()
        .remove(0)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

#[test]
fn names_move_and_images_are_found_by_name_and_id() {
    let (_dir, store) = store();
    let one = put(&store, "app:1", 1);
    let two = put(&store, "app:2", 2);
    assert_eq!(store.tag("app:1", &"other".parse().unwrap()).unwrap().manifest, one.manifest);
    store.tag("app:2", &"app:1".parse().unwrap()).unwrap();
    assert_eq!(store.find("app:1").unwrap().manifest, two.manifest);
    assert_eq!(store.find(&one.config.hex()[..12]).unwrap().manifest, one.manifest);
    assert_eq!(store.find(&one.manifest.to_string()).unwrap().manifest, one.manifest);
    assert_eq!(store.find(&format!("app@{}", two.manifest)).unwrap().manifest, two.manifest);
    assert!(matches!(store.find("none"), Err(Error::NoSuchImage(_))));
    assert!(matches!(store.find("Bad Name"), Err(Error::Reference(_))));
    assert_eq!(store.remove("other").unwrap().name, "docker.io/library/other:latest");
    assert!(store.find(&one.config.hex()).is_err());
    assert_eq!(
        store.list().unwrap().iter().map(ImageRecord::familiar_name).collect::<Vec<_>>(),
        ["app:1", "app:2"]
    );
}

#[test]
fn prune_frees_what_no_name_needs_and_nothing_else() {
    let (_dir, store) = store();
    let one = put(&store, "one", 1);
    let two = put(&store, "two", 2);
    assert_eq!(store.prune(false, None).unwrap().files, 0);
    store.remove("one").unwrap();
    let report = store.prune(false, None).unwrap();
    assert_eq!(report.files, 4, "manifest, config, own blob, own layer");
    assert!(report.freed > 800_000, "{report:?}");
    assert_eq!(report.remaining, store.usage().unwrap().total());
    assert!(store.open_layer(&one.layers[1].diff_id).unwrap().is_none());
    let image = store.open_image("two").unwrap();
    assert_eq!(image.record, two);
}

#[test]
fn prune_all_stops_at_the_size_goal_oldest_first_and_spares_what_runs() {
    let (_dir, store) = store();
    put(&store, "old", 1);
    put(&store, "mid", 2);
    put(&store, "new", 3);
    let running = store.open_image("old").unwrap();
    let total = store.usage().unwrap().total();
    let report = store.prune(true, Some(total - 1)).unwrap();
    assert_eq!(report.names, ["docker.io/library/mid:latest"], "the oldest that nobody uses");
    let report = store.prune(true, None).unwrap();
    assert_eq!(report.names, ["docker.io/library/new:latest"]);
    assert_eq!(running.layer_files().len(), 2);
    assert!(running.layer_files().iter().all(|layer| layer.path.exists()));
    // A removed name does not free what a VM still reads.
    store.remove("old").unwrap();
    store.prune(true, None).unwrap();
    assert!(running.layer_files().iter().all(|layer| layer.path.exists()));
    drop(running);
    store.prune(true, None).unwrap();
    assert_eq!(store.usage().unwrap().total(), 0);
}

#[test]
fn a_damaged_index_is_reported_and_left_alone() {
    let (_dir, store) = store();
    put(&store, "app", 1);
    let index = store.root().join("index.json");
    let good = std::fs::read(&index).unwrap();
    for bad in [
        &good[..good.len() / 2],
        b"",
        b"{}",
        br#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":1}]}"#,
    ] {
        std::fs::write(&index, bad).unwrap();
        let store = Store::open(store.root()).unwrap();
        for error in [
            store.list().unwrap_err(),
            store.prune(true, None).unwrap_err(),
            store.remove("app").unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(
                error.contains("index.json")
                    && error.contains("nothing was changed")
                    && !error.contains('\n'),
                "{error}"
            );
        }
        assert_eq!(std::fs::read(&index).unwrap(), bad);
    }
    std::fs::remove_file(&index).unwrap();
    assert!(Store::open(store.root()).unwrap().list().unwrap_err().to_string().contains("missing"));
    std::fs::write(&index, good).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn damaged_blobs_and_layers_are_noticed_and_mended_by_an_import() {
    let (_dir, store) = store();
    let record = put(&store, "app", 1);
    let layer = store.open_image("app").unwrap().layer_files()[0].path.clone();
    std::fs::write(&layer, "").unwrap();
    let error = store.open_image("app").unwrap_err().to_string();
    assert!(error.contains("pull or import it again"), "{error}");
    let config = store.root().join("blobs/sha256").join(record.config.hex());
    let mut bytes = std::fs::read(&config).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&config, &bytes).unwrap();
    put(&store, "app", 1);
    let error = store.open_image("app").unwrap_err().to_string();
    assert!(error.contains("no longer has its digest"), "{error}");
    std::fs::remove_file(&config).unwrap();
    put(&store, "app", 1);
    store.open_image("app").unwrap();
}

#[test]
fn a_foreign_folder_is_not_taken_for_a_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.9"}"#).unwrap();
    assert!(Store::open(dir.path()).unwrap_err().to_string().contains("9.9"));
}

#[test]
fn the_store_is_an_oci_layout_other_tools_read() {
    let (_dir, store) = store();
    let record = put(&store, "app:1", 1);
    let from = format!("oci:{}:docker.io/library/app:1", store.root().display());
    let out = std::process::Command::new("skopeo").args(["inspect", "--raw", &from]).output().unwrap();
    assert_eq!(
        cloister_image::Digest::of(&out.stdout),
        record.manifest,
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn pruning_while_others_import_takes_nothing_they_need() {
    let (_dir, store) = store();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                store.prune(false, None).unwrap();
            }
        });
        let importers: Vec<_> = (0..2)
            .map(|who| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..8 {
                        // Some layers are shared between the two, some are what the other just gave up.
                        let name = format!("app{who}:{round}");
                        put(store, &name, round);
                        let image = store.open_image(&name).unwrap();
                        assert_eq!(image.layer_files().len(), 2);
                        store.remove(&name).unwrap();
                        assert!(image.layer_files().iter().all(|layer| layer.path.exists()));
                    }
                })
            })
            .collect();
        let results: Vec<_> = importers.into_iter().map(|importer| importer.join()).collect();
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        results.into_iter().for_each(|result| result.unwrap());
    });
    store.prune(false, None).unwrap();
    assert_eq!(store.usage().unwrap().total(), 0);
}

#[test]
fn a_held_layer_stays_until_its_last_owner_lets_go() {
    let (_dir, store) = store();
    let (layer, converted) = store
        .add_layer(
            gzip(&tar(&[("file", b"content")])).as_slice(),
            "layer",
            &Default::default(),
            &Default::default(),
            "one",
        )
        .unwrap();
    let diff_id = layer.diff_id;
    assert_eq!(diff_id, converted.diff_id);
    assert_eq!(store.layers().unwrap(), [diff_id]);
    store.hold(&layer, "one").unwrap();
    store.hold(&layer, "one").unwrap();
    store.hold(&layer, "two").unwrap();
    drop(layer);
    store.release(&diff_id, "one").unwrap();
    store.release(&diff_id, "one").unwrap();
    assert_eq!((store.held_by("one").unwrap(), store.held_by("two").unwrap()), (vec![], vec![diff_id]));
    assert_eq!(store.prune(true, None).unwrap().files, 0);
    assert!(!store.remove_layer(&diff_id).unwrap());
    store.release(&diff_id, "two").unwrap();
    assert!(store.remove_layer(&diff_id).unwrap());
    assert!(store.layers().unwrap().is_empty());
    assert!(!store.remove_layer(&diff_id).unwrap());
}

#[test]
fn a_layer_that_an_image_needs_is_not_removed() {
    let (_dir, store) = store();
    let image = put(&store, "one", 1);
    assert!(!store.remove_layer(&image.layers[0].diff_id).unwrap());
    store.remove("one").unwrap();
    assert!(store.remove_layer(&image.layers[0].diff_id).unwrap());
}

#[test]
fn a_layer_that_is_not_what_was_asked_for_leaves_nothing() {
    let (_dir, store) = store();
    let blob = gzip(&tar(&[("file", b"content")]));
    let expected = cloister_layer::Expected { digest: Some(Digest::of(b"other")), ..Default::default() };
    let error =
        store.add_layer(blob.as_slice(), "layer x", &expected, &Default::default(), "one").unwrap_err();
    assert!(
        error.to_string().starts_with("layer layer x:") || error.to_string().contains("digest"),
        "{error}"
    );
    assert!(store.layers().unwrap().is_empty());
    assert!(std::fs::read_dir(store.root().join("tmp")).unwrap().next().is_none());
}
