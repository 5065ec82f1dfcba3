//! Contexts as a builder receives them, over a real connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use cloister_build::context::{Context, Patterns};
use support::{Ask, Builder, FOLDER, LINK, Transfer, serve};

const ALL: Ask<'_> = Ask { name: "", include: &[], exclude: &[], follow: &[] };

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

async fn paths(root: &tempfile::TempDir, ask: Ask<'_>) -> Vec<String> {
    let mut builder = Builder::default();
    builder.sync(&serve(Context::folder(root).unwrap()).await, ask).await.unwrap();
    builder.paths()
}

/// Why a transfer did not come to its end.
async fn refused(root: &tempfile::TempDir, ask: Ask<'_>) -> String {
    let channel = serve(Context::folder(root).unwrap()).await;
    Builder::default().sync(&channel, ask).await.unwrap_err().message().to_owned()
}

#[tokio::test]
async fn a_folder_arrives_as_it_is() {
    let root = folder(&[("a/b/deep", "1"), ("a.txt", "22"), ("a-b/x", ""), ("B", "333"), ("z/ü", "4")]);
    let at = |path: &str| root.path().join(path);
    fs::set_permissions(at("B"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("z"), fs::Permissions::from_mode(0o1777)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    fs::File::open(at("B")).unwrap().set_modified(time).unwrap();
    symlink("/etc/passwd", at("out")).unwrap();
    symlink("b/../../..", at("a/up")).unwrap();
    fs::hard_link(at("a.txt"), at("z/again")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    rustix::fs::setxattr(at("B"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();

    let mut builder = Builder::default();
    builder.sync(&serve(Context::folder(&root).unwrap()).await, ALL).await.unwrap();
    let expected =
        ["B", "a", "a/b", "a/b/deep", "a/up", "a-b", "a-b/x", "a.txt", "out", "pipe", "z", "z/again", "z/ü"];
    assert_eq!(builder.paths(), expected);
    let (stat, bytes) = builder.at("B");
    assert_eq!((stat.mode, bytes.as_slice()), (0o751 | 1 << 23, b"333".as_slice()));
    assert_eq!((stat.uid, stat.gid, stat.size, stat.mod_time), (0, 0, 3, 1_234_567_890_123_456_789));
    assert_eq!(stat.xattrs.get("user.note").map(Vec::as_slice), Some(b"kept".as_slice()));
    assert_eq!(builder.at("z").0.mode, FOLDER | 1 << 20 | 0o777);
    assert_eq!(builder.at("pipe").0.mode & 1 << 25, 1 << 25);
    for (link, target) in [("out", "/etc/passwd"), ("a/up", "b/../../..")] {
        let (stat, bytes) = builder.at(link);
        assert_eq!((stat.mode & LINK, stat.linkname.as_str(), bytes.len()), (LINK, target, 0));
        assert_eq!(stat.size, i64::try_from(target.len()).unwrap());
    }
    let (again, bytes) = builder.at("z/again");
    assert_eq!((again.linkname.as_str(), again.size, bytes.len()), ("a.txt", 2, 0));
    assert_eq!(builder.at("z/ü").1, b"4");
}

#[tokio::test]
async fn a_second_build_is_sent_what_changed() {
    let root = folder(&[("same", "a"), ("sub/other", "b"), ("sub/gone", "c")]);
    let channel = serve(Context::folder(&root).unwrap()).await;
    let mut builder = Builder::default();
    assert_eq!(builder.sync(&channel, ALL).await.unwrap(), ["same", "sub/gone", "sub/other"]);
    assert_eq!(builder.sync(&channel, ALL).await.unwrap(), [""; 0]);
    fs::write(root.path().join("sub/other"), "bb").unwrap();
    fs::remove_file(root.path().join("sub/gone")).unwrap();
    fs::write(root.path().join("sub/new"), "d").unwrap();
    assert_eq!(builder.sync(&channel, ALL).await.unwrap(), ["sub/new", "sub/other"]);
    assert_eq!(builder.at("sub/other").1, b"bb");
    assert_eq!(builder.paths(), ["same", "sub", "sub/new", "sub/other"]);
}

#[tokio::test]
async fn bytes_are_a_context_as_a_folder_is() {
    let inline = |text: &str| {
        Context::inline([("Dockerfile".to_owned(), text.into()), ("conf/a/b".to_owned(), b"x".to_vec())])
    };
    let mut builder = Builder::default();
    let first = serve(inline("FROM a").unwrap()).await;
    assert_eq!(builder.sync(&first, ALL).await.unwrap(), ["Dockerfile", "conf/a/b"]);
    assert_eq!(builder.sync(&serve(inline("FROM a").unwrap()).await, ALL).await.unwrap(), [""; 0]);
    assert_eq!(builder.sync(&serve(inline("FROM b").unwrap()).await, ALL).await.unwrap(), ["Dockerfile"]);
    assert_eq!(builder.at("Dockerfile").1, b"FROM b");
    assert_eq!(builder.at("conf/a").0.mode, FOLDER | 0o755);
    let only = Ask { follow: &["conf/a"], ..ALL };
    builder.sync(&first, only).await.unwrap();
    assert_eq!(builder.paths(), ["conf", "conf/a", "conf/a/b"]);
}

#[tokio::test]
async fn patterns_say_what_is_shown() {
    let root = folder(&[
        ("src/main.rs", ""),
        ("src/gen/a.rs", ""),
        ("target/debug/x", ""),
        ("target/keep/y", ""),
        ("target/keep/sub/y", ""),
        ("README.md", ""),
        ("docs/README.md", ""),
        ("docs/a.txt", ""),
    ]);
    symlink("docs/a.txt", root.path().join("link")).unwrap();
    for (ask, expected) in [
        (
            Ask { exclude: &["target", "*.md", "link"], ..ALL },
            "docs docs/README.md docs/a.txt src src/gen src/gen/a.rs src/main.rs",
        ),
        (
            Ask { exclude: &["*", "!target/keep"], ..ALL },
            "target target/keep target/keep/sub target/keep/sub/y target/keep/y",
        ),
        (Ask { exclude: &["**", "!**/*.md"], ..ALL }, "README.md docs docs/README.md"),
        (Ask { include: &["src"], exclude: &["src/gen"], ..ALL }, "src src/main.rs"),
        (Ask { include: &["**/*.txt"], ..ALL }, "docs docs/a.txt"),
        (Ask { follow: &["link"], ..ALL }, "docs docs/a.txt link"),
        (Ask { follow: &["link"], include: &["README.md"], ..ALL }, "README.md docs docs/a.txt link"),
        (Ask { follow: &["nothing"], ..ALL }, ""),
        (Ask { follow: &["../docs"], ..ALL }, ""),
        (Ask { follow: &["."], exclude: &["docs", "src", "target"], ..ALL }, "README.md link"),
    ] {
        assert_eq!(paths(&root, ask).await.join(" "), expected, "{:?}", ask.exclude);
    }
    assert!(refused(&root, Ask { exclude: &["a[", "b"], ..ALL }).await.contains("a["));
}

#[tokio::test]
async fn what_a_context_ignores_no_build_can_ask_for() {
    let root = folder(&[(".env", "secret"), ("src/.env", "secret"), ("src/a", "")]);
    let ignored = Patterns::parse(["**/.env"]).unwrap();
    let channel = serve(Context::folder(&root).unwrap().ignoring(ignored)).await;
    let mut builder = Builder::default();
    for ask in [ALL, Ask { include: &[".env", "src"], ..ALL }, Ask { exclude: &["!.env"], ..ALL }] {
        builder.sync(&channel, ask).await.unwrap();
        assert!(builder.paths().iter().all(|path| !path.ends_with(".env")), "{:?}", builder.paths());
    }
    let follow = Ask { follow: &["src/.env", "src/a"], ..ALL };
    builder.sync(&channel, follow).await.unwrap();
    assert_eq!(builder.paths(), ["src", "src/a"]);
}

#[tokio::test]
async fn many_patterns_fit_into_a_request() {
    let root = folder(&[("a", ""), ("b", "")]);
    let patterns: Vec<_> = (0..5000).map(|number| format!("some/long/name/of/a/folder/{number}")).collect();
    let mut exclude: Vec<_> = patterns.iter().map(String::as_str).collect();
    exclude.push("b");
    assert_eq!(paths(&root, Ask { exclude: &exclude, ..ALL }).await, ["a"]);
}

#[tokio::test]
async fn a_file_that_changes_on_its_way_is_one_clear_error() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 6] = [
        ("grows", |path| fs::write(path, "longer than it was").unwrap()),
        ("shrinks", |path| fs::write(path, "").unwrap()),
        ("has other bytes", |path| fs::write(path, "SAME").unwrap()),
        ("vanishes", |path| fs::remove_file(path).unwrap()),
        ("becomes a link", |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
        ("becomes a pipe", |path| {
            fs::remove_file(path).unwrap();
            let mode = rustix::fs::Mode::from(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
    ];
    for (what, change) in changes {
        let root = folder(&[("sub/file", "same"), ("sub/other", "fine")]);
        let channel = serve(Context::folder(&root).unwrap()).await;
        let mut transfer = Transfer::begin(&channel, ALL).await.unwrap();
        assert_eq!(transfer.file(transfer.id("sub/other")).await.unwrap(), b"fine");
        change(&root.path().join("sub/file"));
        let error = transfer.file(transfer.id("sub/file")).await.unwrap_err();
        let expected = "\"sub/file\" of the context was changed or removed while it was being sent";
        assert_eq!(error.message(), expected, "{what}");
    }
}

#[tokio::test]
async fn a_folder_swapped_for_a_link_leads_nowhere() {
    let outside = folder(&[("file", "host's own")]);
    let root = folder(&[("sub/file", "host's own")]);
    let channel = serve(Context::folder(&root).unwrap()).await;
    let mut transfer = Transfer::begin(&channel, ALL).await.unwrap();
    fs::rename(root.path().join("sub"), root.path().join("old")).unwrap();
    symlink(outside.path(), root.path().join("sub")).unwrap();
    let error = transfer.file(transfer.id("sub/file")).await.unwrap_err();
    assert!(error.message().contains("\"sub/file\" of the context was changed"), "{error}");
}

#[tokio::test]
async fn a_builder_gets_nothing_it_was_not_told_of() {
    let root = folder(&[("dir/file", "x"), ("hidden", "y")]);
    let channel = serve(Context::folder(&root).unwrap()).await;
    let ask = Ask { exclude: &["hidden"], ..ALL };
    // A folder, a number after the last, the largest.
    for id in [0, 2, u32::MAX] {
        let mut transfer = Transfer::begin(&channel, ask).await.unwrap();
        let error = transfer.file(id).await.unwrap_err();
        assert!(error.message().starts_with(&format!("the builder asked for file {id} ")), "{error}");
    }
    let mut transfer = Transfer::begin(&channel, ask).await.unwrap();
    assert_eq!(transfer.file(1).await.unwrap(), b"x");
    assert!(transfer.file(1).await.unwrap_err().message().contains("got already"));
    for name in ["dockerfile", "../context", "Context"] {
        let error = Builder::default().sync(&channel, Ask { name, ..ALL }).await.unwrap_err();
        assert_eq!(error.message(), format!("this build has no context {name:?}"));
    }
}

#[tokio::test]
async fn names_that_are_not_utf8_are_refused_unless_ignored() {
    let root = folder(&[("sub/a", "")]);
    let name = OsStr::from_bytes(b"caf\xe9.bin");
    fs::write(root.path().join("sub").join(name), "").unwrap();
    let expected = r#"the name or target of "sub/caf\xe9.bin" in the context is not UTF-8"#;
    assert_eq!(refused(&root, ALL).await, expected);
    assert_eq!(paths(&root, Ask { exclude: &["**/*.bin"], ..ALL }).await, ["sub", "sub/a"]);
    fs::remove_file(root.path().join("sub").join(name)).unwrap();
    symlink(name, root.path().join("sub/link")).unwrap();
    let expected = r#"the name or target of "sub/link" in the context is not UTF-8"#;
    assert_eq!(refused(&root, ALL).await, expected);
}

#[tokio::test]
async fn a_file_that_can_not_be_read_is_one_clear_error() {
    // Not even root may read it, so the test needs no other user.
    let channel = serve(Context::folder("/proc/sys/vm").unwrap()).await;
    let ask = Ask { include: &["drop_caches"], ..ALL };
    let error = Builder::default().sync(&channel, ask).await.unwrap_err();
    assert!(
        error.message().starts_with("reading \"drop_caches\" of the context: Permission denied"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_does_not_read_stops_the_reading_of_the_host() {
    let root = folder(&[("large", "")]);
    let path = root.path().join("large");
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let channel = serve(Context::folder(&root).unwrap()).await;
    let mut transfer = Transfer::begin(&channel, ALL).await.unwrap();
    transfer.request(bollard_buildkit_proto::fsutil::types::packet::PacketType::PacketReq, 0).await;
    transfer.next().await.unwrap();
    let position = || {
        let fd = fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.file_name().display())).unwrap();
        info.lines().next()?.strip_prefix("pos:")?.trim().parse::<u64>().ok()
    };
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = position().unwrap();
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 4 << 20, "{before} bytes were read ahead");
    // And a builder that goes away ends it.
    drop((transfer, channel));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while position().is_some() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Whatever the names and patterns, fsutil's demands are met (the receiver checks them), and what is shown is
    /// what single questions to the patterns say.
    #[test]
    fn any_tree_comes_in_order(
        files in proptest::collection::btree_map("[a-c.\\-]{1,2}(/[a-c.\\-]{1,3}){0,3}", "[xy]{0,3}", 0..24),
        exclude in proptest::collection::vec("!?[a-c*]{1,2}(/[a-c*]{1,2}){0,2}", 0..4),
    ) {
        let files: BTreeMap<_, _> = files.into_iter()
            .filter(|(path, _)| path.split('/').all(|part| part != "." && part != ".."))
            .collect();
        let Ok(context) = Context::inline(files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())))
        else { return Ok(()) };
        let exclude: Vec<_> = exclude.iter().map(String::as_str).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let builder = runtime.block_on(async {
            let mut builder = Builder::default();
            builder.sync(&serve(context).await, Ask { exclude: &exclude, ..ALL }).await.unwrap();
            builder
        });
        let patterns = Patterns::parse(exclude.iter().copied()).unwrap();
        for (path, text) in &files {
            let shown = builder.paths().contains(path);
            // On a walk an exception that no pattern was before is forgotten; see `Patterns::matches_in`.
            if !exclude.iter().any(|pattern| pattern.starts_with('!')) {
                proptest::prop_assert_eq!(shown, !patterns.matches(path), "{}", path);
            }
            if shown {
                proptest::prop_assert_eq!(&builder.at(path).1, text.as_bytes());
            }
        }
    }
}
