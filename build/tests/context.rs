//! Contexts as a builder receives them, over a real connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use cloister_build::context::{Context, Patterns};
use support::{ALL, Ask, Builder, FOLDER, LINK, folder, paths, refused, serve};

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
