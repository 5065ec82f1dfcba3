//! Builds that succeed.

use cloister_build::client::{CacheFrom, CacheTo, Layout, NamedContext, Offer, Output, Solve};
use cloister_build::context::Context;
use cloister_build::output::{FileSendService, Output as Target};
use cloister_build::progress::{Event, Outcome};
use cloister_image::{Digest, Store};

use crate::BUSYBOX;
use crate::lab::{Lab, dockerfile, folders, import, lines};

fn archive(lab: &Lab, name: &str) -> (std::path::PathBuf, FileSendService) {
    let path = lab.dir.path().join(name);
    let (target, _) = Target::file(&path, 1 << 30).unwrap();
    (path, FileSendService::new([target]))
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_and_arguments_end_in_an_archive() {
    let lab = Lab::start();
    let text = format!(
        "{BUSYBOX}ARG WHO=nobody\nRUN busybox echo \"hello $WHO\" >/greeting && busybox cat /greeting\n\
         FROM scratch\nCOPY --from=base /greeting /\n"
    );
    let (path, outputs) = archive(&lab, "out.tar");
    let solve = Solve {
        args: [("WHO".to_owned(), "world".to_owned())].into(),
        outputs: vec![Output::oci().named("example.org/hello:1")],
        ..Default::default()
    };
    let (solved, events) = lab.build(&solve, lab.session(&text, &[]).output(outputs)).await;
    let solved = solved.unwrap();
    assert!(solved.digest.is_some() && solved.config.is_some(), "{solved:?}");
    assert_eq!(solved.names, ["example.org/hello:1"]);
    assert!(lines(&events).contains(&"hello world".to_owned()), "{events:?}");
    let done = |event: &&Event| matches!(event, Event::End { outcome: Outcome::Done { .. }, .. });
    assert!(events.iter().filter(done).count() >= 4, "{events:?}");
    assert!(std::fs::metadata(path).unwrap().len() > 1000);
    let buildkit = lab.connect().await;
    assert!(buildkit.info().await.unwrap().version.starts_with('v'));
    let records = buildkit.disk_usage().await.unwrap();
    assert!(!records.is_empty());
    // Its policy keeps more than that.
    buildkit.collect_garbage().await.unwrap();
    assert_eq!(buildkit.disk_usage().await.unwrap().len(), records.len());
    assert!(!buildkit.prune(&Default::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_input_gives_the_same_digest() {
    let mut digests = Vec::new();
    for run in 0..2 {
        let lab = Lab::start();
        let text = format!("{BUSYBOX}RUN busybox echo x >/x\n");
        let (_, outputs) = archive(&lab, &format!("{run}.tar"));
        let solve = Solve {
            source_date_epoch: Some(1_700_000_000),
            outputs: vec![Output::oci().rewrite_timestamps()],
            ..Default::default()
        };
        let (solved, _) = lab.build(&solve, lab.session(&text, &[]).output(outputs)).await;
        digests.push(solved.unwrap().digest.unwrap());
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn base_images_come_from_the_store_without_a_registry() {
    let lab = Lab::start();
    let (path, outputs) = archive(&lab, "base.tar");
    let solve = Solve { outputs: vec![Output::oci().named("example.org/base:1")], ..Default::default() };
    let (solved, _) = lab.build(&solve, lab.session(BUSYBOX, &[]).output(outputs)).await;
    solved.unwrap();

    let store = Store::open(lab.dir.path().join("store")).unwrap();
    let name = "example.org/base:1".parse().unwrap();
    let (offer, manifest) = tokio::task::block_in_place(|| {
        import(&store, path, &name);
        Offer::image(&store, &store.open_image("example.org/base:1").unwrap()).unwrap()
    });
    let text = "FROM example.org/base:1\nRUN busybox echo from the store\n";
    let mut solve = Solve::default();
    solve.base_image(&name, "base0", manifest);
    let (solved, events) = lab.build(&solve, lab.session(text, &[]).content("oci:base0", offer)).await;
    solved.unwrap();
    assert!(lines(&events).contains(&"from the store".to_owned()), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn named_contexts_are_folders_of_the_session() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN --mount=from=extra,target=/extra busybox cat /extra/note\n");
    let extra = Context::inline([("note".to_owned(), b"from afar\n".to_vec())]).unwrap();
    let context = Context::inline([("busybox".to_owned(), lab.busybox())]).unwrap();
    let solve = Solve {
        contexts: [("extra".to_owned(), NamedContext::Folder("more".to_owned()))].into(),
        ..Default::default()
    };
    let session = cloister_build::client::Session::new("test", "test").files(folders([
        ("context", context),
        ("dockerfile", dockerfile(&text)),
        ("more", extra),
    ]));
    let (solved, events) = lab.build(&solve, session).await;
    solved.unwrap();
    assert!(lines(&events).contains(&"from afar".to_owned()), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_and_images_are_written_blob_by_blob_and_read_back() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN busybox echo once >/once\n");
    let cache = Layout::open(lab.dir.path().join("cache"), 1 << 30).unwrap();
    let image = Layout::open(lab.dir.path().join("image"), 1 << 30).unwrap();
    let solve = Solve {
        outputs: vec![Output::oci_store()],
        cache_to: vec![CacheTo { name: "c".to_owned(), max: true }],
        ..Default::default()
    };
    let session = lab.session(&text, &[]).content("local:c", cache.clone()).content("export", image.clone());
    let solved = lab.build(&solve, session).await.0.unwrap();
    cache.name("latest", &solved.cache.unwrap()).unwrap();
    image.name("latest", &solved.descriptor.unwrap()).unwrap();
    assert_eq!(image.find("latest").unwrap(), solved.digest);

    let fresh = Lab::start();
    let manifest: Digest = cache.find("latest").unwrap().unwrap();
    let whole = cache.cache().unwrap().unwrap();
    assert_eq!(whole.nodes[0].blob.digest, manifest, "a manifest, written last");
    let solve =
        Solve { cache_from: vec![CacheFrom { name: "c".to_owned(), manifest }], ..Default::default() };
    let (solved, events) = fresh.build(&solve, fresh.session(&text, &[]).content("local:c", cache)).await;
    solved.unwrap();
    let cached = |event: &&Event| matches!(event, Event::End { outcome: Outcome::Cached, .. });
    assert!(events.iter().any(|event| cached(&event)), "{events:?}");
}
