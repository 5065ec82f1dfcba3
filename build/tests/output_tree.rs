//! Trees as a builder sends them, over a real connection; most of these builders mean no good.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient;
use cloister_build::output::{FileSendService, Limits, Output, OutputError, Received};
use proptest::prelude::*;
use support::{FOLDER, LINK, channel, packet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

/// A tree as a builder announces it.
fn entry(path: &str, mode: u32, size: i64, linkname: &str) -> Stat {
    Stat {
        path: path.into(),
        mode,
        size,
        linkname: linkname.into(),
        mod_time: 1_500_000_000_000_000_001,
        ..Stat::default()
    }
}

fn file(path: &str, text: &str) -> (Stat, Vec<u8>) {
    (entry(path, 0o644, i64::try_from(text.len()).unwrap(), ""), text.into())
}

fn folder(path: &str) -> (Stat, Vec<u8>) {
    (entry(path, FOLDER | 0o755, 0, ""), Vec::new())
}

fn link(path: &str, target: &str) -> (Stat, Vec<u8>) {
    (entry(path, LINK | 0o777, i64::try_from(target.len()).unwrap(), target), Vec::new())
}

/// A builder in the middle of sending a tree.
struct Sender {
    to: mpsc::Sender<Packet>,
    from: Streaming<Packet>,
}

impl Sender {
    async fn begin(output: Output) -> Self {
        let channel = channel(FileSendService::new([output]).server()).await;
        let (to, stream) = mpsc::channel(4096);
        let request = ReceiverStream::new(stream);
        let from = FileSendClient::new(channel).diff_copy(request).await.unwrap().into_inner();
        Self { to, from }
    }

    async fn put(&self, packet: Packet) {
        // Who gave up reads no more.
        let _ = self.to.send(packet).await;
    }

    async fn tell(&self, stat: Option<Stat>) {
        self.put(Packet { stat, ..packet(PacketType::PacketStat, 0) }).await;
    }

    async fn bytes(&self, id: u32, bytes: &[u8]) {
        self.put(Packet { data: bytes.to_vec(), ..packet(PacketType::PacketData, id) }).await;
    }

    /// What the other side says next; its reason when it gave up.
    async fn next(&mut self) -> Result<Packet, String> {
        match self.from.message().await {
            Ok(Some(packet)) if packet.r#type == i32::from(PacketType::PacketErr) => {
                Err(String::from_utf8(packet.data).unwrap())
            }
            Ok(Some(packet)) => Ok(packet),
            Ok(None) => Err("ended".into()),
            Err(status) => Err(status.message().into()),
        }
    }

    /// Sends a tree as fsutil does.
    async fn send(mut self, tree: &[(Stat, Vec<u8>)]) -> Result<(), String> {
        for (stat, _) in tree {
            self.tell(Some(stat.clone())).await;
        }
        self.tell(None).await;
        loop {
            let asked = self.next().await?;
            match PacketType::try_from(asked.r#type).unwrap() {
                PacketType::PacketReq => {
                    for chunk in tree[asked.id as usize].1.chunks(3) {
                        self.bytes(asked.id, chunk).await;
                    }
                    self.bytes(asked.id, b"").await;
                }
                PacketType::PacketFin => {
                    self.put(packet(PacketType::PacketFin, 0)).await;
                    return Ok(());
                }
                other => panic!("{other:?} from a receiver"),
            }
        }
    }
}

/// Sends a tree to a new folder below `place`; what the builder hears, and what the host knows.
async fn send(place: &Path, tree: &[(Stat, Vec<u8>)]) -> (Result<(), String>, Result<Received, OutputError>) {
    let (output, receipt) = Output::folder(place.join("out"), LIMITS).unwrap();
    let heard = Sender::begin(output).await.send(tree).await;
    (heard, receipt.wait().await)
}

/// The same for a tree that is not taken: nothing is left, and both sides know the same reason.
async fn refused(tree: &[(Stat, Vec<u8>)]) -> String {
    let place = tempfile::tempdir().unwrap();
    let (heard, known) = send(place.path(), tree).await;
    let why = known.unwrap_err().to_string();
    assert_eq!(heard.unwrap_err(), why);
    assert_eq!(names(place.path()), [""; 0], "{why}");
    why
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_as_it_was_sent() {
    let place = tempfile::tempdir().unwrap();
    let mut tree = vec![
        file("a", "first"),
        folder("dir"),
        file("dir/b", "second"),
        link("dir/down", "../a"),
        folder("dir/empty"),
        (entry("dir.two", 0o644, 5, "a"), Vec::new()),
        file("dir.zero", ""),
        link("nowhere", "not/there"),
        (entry("suid", 0o755 | 1 << 23 | 1 << 22 | 1 << 20, 1, ""), b"x".to_vec()),
    ];
    tree[1].0.mode = FOLDER | 0o555;
    tree[0].0.uid = 12345;
    tree[0].0.xattrs.insert("user.x".into(), b"y".to_vec());
    let (heard, known) = send(place.path(), &tree).await;
    heard.unwrap();
    assert_eq!(known.unwrap(), Received { bytes: 12, digest: None });
    assert_eq!(names(place.path()), ["out"]);
    let out = place.path().join("out");
    assert_eq!(names(&out), ["a", "dir", "dir.two", "dir.zero", "nowhere", "suid"]);
    assert_eq!(fs::read_to_string(out.join("dir/down")).unwrap(), "first");
    assert_eq!(fs::read_to_string(out.join("dir/b")).unwrap(), "second");
    assert_eq!(fs::read(out.join("dir.zero")).unwrap(), b"");
    let (a, two) = (fs::metadata(out.join("a")).unwrap(), fs::metadata(out.join("dir.two")).unwrap());
    assert_eq!((a.ino(), a.nlink()), (two.ino(), 2));
    assert_eq!((a.mode() & 0o7777, a.mtime(), a.mtime_nsec()), (0o644, 1_500_000_000, 1));
    assert_eq!(a.uid(), rustix::process::getuid().as_raw());
    let dir = fs::metadata(out.join("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o555, 1_500_000_000));
    assert_eq!(fs::metadata(out.join("suid")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o755);
    fs::set_permissions(out.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_out_are_refused() {
    for path in ["..", "../a", "a/../../b", "/etc/passwd", "", ".", "a//b", "./a", "a/", "a/.", "a\0b"] {
        for tree in [vec![file(path, "x")], vec![folder("a"), folder(path)], vec![link(path, "a")]] {
            let why = refused(&tree).await;
            assert!(why.contains("its name is "), "{path:?}: {why}");
        }
    }
    assert!(refused(&[file(&"x".repeat(256), "")]).await.contains("its name is too long"));
    let deep: Vec<_> = (1..300).map(|depth| folder(&vec!["d"; depth].join("/"))).collect();
    assert!(refused(&deep).await.contains("too many folders"));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_nowhere_else() {
    for (tree, link) in [
        (vec![link("out", "/etc/passwd")], "out"),
        (vec![link("out", "..")], "out"),
        (vec![folder("d"), link("d/out", "../../x")], "d/out"),
        // Each is fine by its text.
        (vec![folder("d"), folder("d/e"), link("d/e/up", "../.."), link("out", "d/e/up/../x")], "out"),
        (vec![link("a", "b/c"), link("b", "d"), folder("d"), link("d/c", "../..")], "a"),
    ] {
        let why = refused(&tree).await;
        assert_eq!(why, format!("the output has {link:?}: it is a link that leads out of the output"));
    }
    for target in ["", "a\0b", &"x".repeat(4096)] {
        assert!(refused(&[link("l", target)]).await.contains("a link to what can't be a path"));
    }
    // Nothing is ever written through one.
    let outside = tempfile::tempdir().unwrap();
    let to = outside.path().to_str().unwrap();
    let why = refused(&[link("l", to), file("l/file", "x")]).await;
    assert!(why.contains("an entry out of order"), "{why}");
    let why = refused(&[link("l", to), (entry("n", 0o644, 1, "l/file"), Vec::new())]).await;
    assert!(why.contains("another name of a file that is not there"), "{why}");
    assert_eq!(names(outside.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_of_files_of_the_tree() {
    for first in ["missing", "dir", "link", "dir/missing"] {
        let tree = [folder("dir"), link("link", "dir"), (entry("n", 0o644, 1, first), Vec::new())];
        assert!(refused(&tree).await.contains("another name of a file that is not there"), "{first}");
    }
    for first in ["../a", "/etc/passwd", "."] {
        let why = refused(&[(entry("n", 0o644, 1, first), Vec::new())]).await;
        assert!(why.contains("not relative and clean"), "{first}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_pipes_and_sockets_are_refused() {
    for kind in [1 << 26, 1 << 26 | 1 << 21, 1 << 25, 1 << 24, 1 << 19, FOLDER | LINK] {
        let why = refused(&[(entry("x", kind | 0o600, 0, ""), Vec::new())]).await;
        assert!(why.contains("devices, pipes and sockets"), "{kind:x}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_out_of_order_are_refused() {
    for tree in [
        vec![file("b", ""), file("a", "")],
        vec![file("a", ""), file("a", "")],
        vec![folder("a"), folder("a")],
        vec![file("a/b", "")],
        vec![file("a", ""), file("a/b", "")],
        vec![folder("a"), file("b", ""), file("a/c", "")],
    ] {
        assert!(refused(&tree).await.contains("out of order"), "{tree:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_numbers_are_bounded() {
    let large = entry("a", 0o644, 1 << 20, "");
    let why = refused(&[(large, Vec::new()), file("b", "x")]).await;
    assert_eq!(why, format!("the output has more than {} bytes", 1 << 20));
    for size in [i64::MAX, -1] {
        let tree = [(entry("a", 0o644, size, ""), vec![]), (entry("b", 0o644, size, ""), vec![])];
        let why = refused(&tree).await;
        assert!(why.contains("more than 1048576 bytes") || why.contains("a size below zero"), "{why}");
    }
    let many: Vec<_> = (0..1001).map(|number| file(&format!("{number:04}"), "")).collect();
    assert!(refused(&many).await.contains("more than 1000 files"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_as_long_as_it_was_said_to_be() {
    let mut tree = [file("a", "text")];
    tree[0].0.size = 3;
    assert!(refused(&tree).await.contains("a file longer than"));
    tree[0].0.size = 5;
    assert!(refused(&tree).await.contains("a file shorter than"));
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_out_of_place_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let data = |id| Packet { data: b"x".to_vec(), ..packet(PacketType::PacketData, id) };
    let stat = |stat| Packet { stat: Some(stat), ..packet(PacketType::PacketStat, 0) };
    let end = packet(PacketType::PacketStat, 0);
    for (packets, expected) in [
        (vec![data(0)], "bytes of a file that was not asked for"),
        (vec![stat(folder("a").0), data(0)], "bytes of a file that was not asked for"),
        (vec![stat(file("a", "x").0), data(1)], "bytes of a file that was not asked for"),
        (vec![stat(file("a", "x").0), end.clone(), stat(folder("b").0)], "a packet out of place"),
        (vec![stat(file("a", "x").0), end.clone(), end.clone()], "a packet out of place"),
        (vec![packet(PacketType::PacketReq, 0)], "a packet out of place"),
        (vec![packet(PacketType::PacketFin, 0)], "a packet out of place"),
        (vec![Packet { r#type: 77, ..Packet::default() }], "a packet out of place"),
        (vec![Packet { data: b"no space".to_vec(), ..packet(PacketType::PacketErr, 0) }], "no space"),
    ] {
        let (output, receipt) = Output::folder(place.path().join("out"), LIMITS).unwrap();
        let mut sender = Sender::begin(output).await;
        for packet in packets {
            sender.put(packet).await;
        }
        let why = receipt.wait().await.unwrap_err().to_string();
        assert!(why.ends_with(expected), "{why}");
        while let Ok(asked) = sender.next().await {
            assert_eq!(asked.r#type, i32::from(PacketType::PacketReq));
        }
        assert_eq!(names(place.path()), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_goes_away_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (output, receipt) = Output::folder(place.path().join("a/b/out"), LIMITS).unwrap();
    let mut sender = Sender::begin(output).await;
    sender.tell(Some(file("a", "text").0)).await;
    sender.next().await.unwrap();
    sender.bytes(0, b"te").await;
    drop(sender);
    assert!(matches!(receipt.wait().await, Err(OutputError::Missing)));
    assert_eq!(names(&place.path().join("a/b")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_stays() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    fs::create_dir(&out).unwrap();
    let (heard, _) = send(place.path(), &[file("a", "1")]).await;
    heard.unwrap();
    assert!(matches!(Output::folder(&out, LIMITS), Err(OutputError::Exists(_))));
    assert!(matches!(Output::folder(out.join("a"), LIMITS), Err(OutputError::Exists(_))));
    fs::remove_file(out.join("a")).unwrap();
    // Something came there meanwhile.
    let (output, receipt) = Output::folder(&out, LIMITS).unwrap();
    fs::write(out.join("mine"), "").unwrap();
    let mut locked = [folder("d"), file("d/x", "2")];
    locked[0].0.mode = FOLDER;
    let heard = Sender::begin(output).await.send(&locked).await;
    assert!(heard.unwrap_err().contains("not empty"));
    assert!(receipt.wait().await.is_err());
    assert_eq!((names(place.path()), names(&out)), (vec!["out".to_owned()], vec!["mine".to_owned()]));
}

/// Packets of a builder: mostly a tree, mostly in order, and bytes for it.
fn said() -> impl Strategy<Value = Packet> {
    let path = prop_oneof![
        9 => "[a-c]{1,2}(/[a-c]{1,2}){0,2}",
        1 => "(\\.\\.|[a-c./])(/(\\.\\.|[a-c.\\x00]{0,2})){0,3}",
    ];
    let mode = prop_oneof![Just(0o644), Just(FOLDER | 0o755), Just(LINK | 0o777), any::<u32>()];
    let target = prop_oneof![4 => Just(String::new()), 1 => "(\\.\\.|[a-c]{1,2})(/(\\.\\.|[a-c]{1,2})){0,4}", 1 => "/[a-c]"];
    let stat = (path, mode, -1..9_i64, target).prop_map(|(path, mode, size, target)| Packet {
        stat: Some(entry(&path, mode, size, &target)),
        ..packet(PacketType::PacketStat, 0)
    });
    let data = (0..6_u32, proptest::collection::vec(any::<u8>(), 0..5))
        .prop_map(|(id, data)| Packet { data, ..packet(PacketType::PacketData, id) });
    let end = Just(packet(PacketType::PacketStat, 0));
    let other =
        (any::<i32>(), any::<u32>()).prop_map(|(kind, id)| Packet { r#type: kind, id, ..Packet::default() });
    prop_oneof![8 => stat, 8 => data, 2 => end, 1 => other]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a builder sends, there is a whole tree in its place, or nothing; and nothing beside it.
    #[test]
    fn any_packets_leave_a_tree_or_nothing(mut said in proptest::collection::vec(said(), 0..16), sorted: bool) {
        if sorted {
            said.sort_by_key(|packet| (packet.stat.is_none(), packet.stat.as_ref().map(|stat| stat.path.replace('/', "\0"))));
        }
        let place = tempfile::tempdir().unwrap();
        let received = cloister_build::fuzzing::output(&place.path().join("out"), LIMITS, said);
        let expected = if received.is_ok() { vec!["out".to_owned()] } else { Vec::new() };
        prop_assert_eq!(names(place.path()), expected);
        if received.is_ok() {
            inside(&place.path().join("out"), &place.path().join("out").canonicalize().unwrap());
        }
    }
}

/// All of a tree is files, folders and links that stay in it.
fn inside(folder: &Path, root: &Path) {
    for name in names(folder) {
        let path = folder.join(name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
        if kind.is_symlink() {
            assert!(
                path.canonicalize().is_err() || path.canonicalize().unwrap().starts_with(root),
                "{path:?}"
            );
        } else if kind.is_dir() {
            inside(&path, root);
        }
    }
}
