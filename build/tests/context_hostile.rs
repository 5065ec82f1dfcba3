//! Contexts that change while they are sent, and builders that ask for what is not theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use cloister_build::context::Context;
use proptest::prelude::*;
use support::{ALL, Ask, Builder, Transfer, folder, packet, paths, refused, serve};

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
    transfer.request(PacketType::PacketReq, 0).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_files_are_asked_for_at_once() {
    let files = (0..5000).map(|number| (format!("{number:05}"), b"x".to_vec()));
    let channel = serve(Context::inline(files).unwrap()).await;
    let mut transfer = Transfer::begin(&channel, ALL).await.unwrap();
    for id in 0..5000 {
        transfer.request(PacketType::PacketReq, id).await;
    }
    // One packet of bytes and one that ends them for each.
    for _ in 0..10_000 {
        transfer.next().await.unwrap();
    }
    transfer.finish().await.unwrap();
}

/// What a builder may say.
fn said() -> impl Strategy<Value = Packet> {
    let request = (0..6_u32).prop_map(|id| packet(PacketType::PacketReq, id));
    let other = (
        -1..7_i32,
        0..6_u32,
        proptest::option::of(Just(Stat::default())),
        proptest::collection::vec(0..255_u8, 0..9),
    )
        .prop_map(|(kind, id, stat, data)| Packet { r#type: kind, id, stat, data });
    prop_oneof![9 => request, 1 => other]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a builder says, it gets at most the files it was told of, each once, and an end.
    #[test]
    fn any_requests_get_what_was_announced(said in proptest::collection::vec(said(), 0..12)) {
        let files = [("a/one", "1"), ("a/two", "22"), ("b", "333"), ("hidden", "4444")];
        let context = Context::inline(files.map(|(path, text)| (path.to_owned(), text.into()))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ask = Ask { exclude: &["hidden"], ..ALL };
            let mut transfer = Transfer::begin(&serve(context).await, ask).await.unwrap();
            for packet in said {
                transfer.say(packet).await;
            }
            transfer.request(PacketType::PacketFin, 0).await;
            let mut got: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            while let Ok(packet) = transfer.next().await {
                if packet.r#type == i32::from(PacketType::PacketData) {
                    got.entry(packet.id).or_default().extend(packet.data);
                }
            }
            for (id, bytes) in got {
                let whole = match transfer.stats[id as usize].path.as_str() {
                    "a/one" => "1",
                    "a/two" => "22",
                    "b" => "333",
                    other => panic!("{other} was sent"),
                };
                assert!(bytes.is_empty() || bytes == whole.as_bytes());
            }
        });
    }
}
