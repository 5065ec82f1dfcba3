//! The snapshotter's rules, without containerd.

use std::collections::BTreeMap;
use std::path::Path;

use cloister_image::{Digest, LayerFile, Store};

use super::chain::chain_id;
use super::filter::Filter;
use super::record::{Kind, TARGET};
use super::state::{Made, State};
use crate::error::Error;

/// A daemon's folder, opened again as often as wanted.
struct Lab {
    dir: tempfile::TempDir,
    state: State,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = open(dir.path(), true);
        Self { dir, state }
    }

    /// As after a crash: nothing is told to the old one.
    fn reopen(&mut self) {
        self.state = open(self.dir.path(), true);
    }

    fn layer(&self, content: &str) -> LayerFile {
        let blob = tar(content);
        let store = self.state.store();
        store.add_layer(blob.as_slice(), "test", &Default::default(), &Default::default(), "test").unwrap().0
    }

    /// Unpacks a layer as containerd does; the snapshot's name is its chain ID with namespace and number.
    fn unpack(&self, number: u32, parent: Option<(&str, Digest)>, content: &str) -> (String, Digest) {
        let layer = self.layer(content);
        let chain = chain_id(parent.map(|(_, chain)| chain).as_ref(), &layer.diff_id);
        let key = format!("ns/{number}/extract-1-x {chain}");
        let below = parent.map_or("", |(name, _)| name);
        assert_eq!(self.state.create(Kind::Active, &key, below, BTreeMap::new()).unwrap(), Made::New);
        self.state.applied(&key, &layer).unwrap();
        let name = format!("ns/{number}/{chain}");
        self.state.commit(&name, &key, target(&chain)).unwrap();
        self.state.store().release(&layer.diff_id, "test").unwrap();
        (name, chain)
    }

    fn names(&self) -> Vec<String> {
        self.state.list(&[]).into_iter().map(|record| record.name).collect()
    }
}

fn open(dir: &Path, skip: bool) -> State {
    State::open(dir, Store::open(dir).unwrap(), skip).unwrap()
}

fn tar(content: &str) -> Vec<u8> {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"file");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content.as_bytes());
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn target(chain: &Digest) -> BTreeMap<String, String> {
    BTreeMap::from([(TARGET.to_owned(), chain.to_string())])
}

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[test]
fn a_layer_is_unpacked_committed_used_and_removed() {
    let mut lab = Lab::new();
    let (base, chain) = lab.unpack(1, None, "base");
    let (top, _) = lab.unpack(2, Some((&base, chain)), "top");
    lab.state.create(Kind::Active, "ns/3/container", &top, none()).unwrap();
    lab.reopen();
    let found = lab.state.find("ns/3/container").unwrap();
    assert_eq!(found.layers.len(), 2);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(found.dir.join("layers.json")).unwrap()).unwrap();
    assert_eq!(json["store"], lab.dir.path().to_str().unwrap());
    assert_eq!(json["layers"][0], found.layers[0].to_string());
    assert_eq!(json["layers"][1], found.layers[1].to_string());

    assert!(matches!(lab.state.remove(&base), Err(Error::Precondition(_))));
    assert!(matches!(lab.state.remove(&top), Err(Error::Precondition(_))));
    lab.state.cleanup().unwrap();
    assert_eq!(lab.state.store().layers().unwrap().len(), 2);
    for name in ["ns/3/container", &top, &base] {
        lab.state.remove(name).unwrap();
        assert!(matches!(lab.state.remove(name), Err(Error::NotFound(_))));
    }
    lab.state.cleanup().unwrap();
    assert!(lab.state.store().layers().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(lab.dir.path().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn layers_that_snapshots_need_survive_a_prune_and_a_lost_hold() {
    let mut lab = Lab::new();
    let (base, _) = lab.unpack(1, None, "base");
    let diff_id = lab.state.find(&base).unwrap().layers[0];
    let store = lab.state.store().clone();
    assert_eq!(store.prune(true, None).unwrap().files, 0);
    // A crash of the machine may lose the hold, but not the snapshot.
    store.release(&diff_id, super::state::OWNER).unwrap();
    lab.reopen();
    assert_eq!(store.prune(true, None).unwrap().files, 0);
}

#[test]
fn what_the_store_completes_is_there_at_once() {
    let lab = Lab::new();
    let (base, chain) = lab.unpack(1, None, "base");
    // Known by name, in another namespace: the same layer, not unpacked again.
    let key = "other/1/extract-1-x base";
    assert_eq!(lab.state.create(Kind::Active, key, "", target(&chain)).unwrap(), Made::Known);
    let filter = format!("labels.\"{TARGET}\"=={chain},parent==\"\"");
    let filter = Filter::parse(&filter).unwrap();
    assert_eq!(lab.state.list(std::slice::from_ref(&filter)).len(), 1);
    // In the store, but in no snapshot: a committed snapshot is made of it, on the parent asked for.
    let layer = lab.layer("top");
    let top = chain_id(Some(&chain), &layer.diff_id);
    let key = format!("ns/2/extract-1-x {top}");
    assert_eq!(lab.state.create(Kind::Active, &key, &base, target(&top)).unwrap(), Made::Known);
    let made = lab.state.stat(&key).unwrap();
    assert_eq!((made.kind, made.parent.as_str(), made.chain), (Kind::Committed, base.as_str(), Some(top)));
    // The same layer on another parent, which is another chain.
    let alone = chain_id(None, &layer.diff_id);
    assert_eq!(
        lab.state.create(Kind::Active, "ns/3/extract-1-y x", "", target(&alone)).unwrap(),
        Made::Known
    );
    // Unknown, or no label: to be unpacked.
    let other = Digest::of(b"other");
    assert_eq!(lab.state.create(Kind::Active, "ns/4/extract-1-z x", "", target(&other)).unwrap(), Made::New);
    let key = format!("ns/5/extract-1-z {top}");
    assert_eq!(lab.state.create(Kind::Active, &key, &base, none()).unwrap(), Made::New);
    // …where the differ needs no blob.
    let dir = lab.state.find(&key).unwrap().dir;
    let (name, there) = lab.state.unpacking(&dir).unwrap();
    assert_eq!((name, there.unwrap().diff_id), (key, layer.diff_id));
}

#[test]
fn without_skipping_every_layer_is_unpacked() {
    let mut lab = Lab::new();
    lab.state = open(lab.dir.path(), false);
    let layer = lab.layer("x");
    let chain = chain_id(None, &layer.diff_id);
    assert_eq!(lab.state.create(Kind::Active, "ns/1/extract-1-x x", "", target(&chain)).unwrap(), Made::New);
}

#[test]
fn calls_out_of_order_get_the_codes_that_containerd_expects() {
    let lab = Lab::new();
    let (base, _) = lab.unpack(1, None, "base");
    let state = &lab.state;
    assert!(matches!(state.create(Kind::Active, "", &base, none()), Err(Error::Invalid(_))));
    assert!(matches!(state.create(Kind::Active, "ns/2/c", "missing", none()), Err(Error::NotFound(_))));
    state.create(Kind::Active, "ns/2/c", &base, none()).unwrap();
    assert!(matches!(state.create(Kind::View, "ns/2/c", &base, none()), Err(Error::Exists(_))));
    assert!(matches!(state.create(Kind::Active, "ns/3/c", "ns/2/c", none()), Err(Error::Invalid(_))));
    assert!(matches!(state.commit("ns/9/x", "ns/2/c", none()), Err(Error::Precondition(_))));
    assert!(matches!(state.commit("ns/9/x", "missing", none()), Err(Error::NotFound(_))));
    assert!(matches!(state.commit("ns/9/x", &base, none()), Err(Error::Precondition(_))));
    state.create(Kind::View, "ns/4/v", &base, none()).unwrap();
    assert!(matches!(state.commit("ns/9/x", "ns/4/v", none()), Err(Error::Precondition(_))));
    assert!(matches!(state.update("missing", none(), &[]), Err(Error::NotFound(_))));
    assert!(matches!(state.update(&base, none(), &["parent".into()]), Err(Error::Invalid(_))));
    assert!(matches!(state.applied("ns/2/c", &lab.layer("y")), Err(Error::Precondition(_))));
    assert!(matches!(state.unpacking(Path::new("/etc")), Err(Error::NotFound(_))));
    let dir = state.find("ns/2/c").unwrap().dir;
    assert!(matches!(state.unpacking(&dir), Err(Error::NotFound(_))));
}

#[test]
fn a_commit_that_containerd_forgot_can_be_done_again() {
    let lab = Lab::new();
    let (base, chain) = lab.unpack(1, None, "base");
    lab.state.create(Kind::Active, "ns/2/c", &base, none()).unwrap();
    let layer = lab.layer("base");
    let key = format!("ns/7/extract-2-y {chain}");
    lab.state.create(Kind::Active, &key, "", none()).unwrap();
    lab.state.applied(&key, &layer).unwrap();
    lab.state.commit(&base, &key, target(&chain)).unwrap();
    assert!(matches!(lab.state.stat(&key), Err(Error::NotFound(_))));
    // Another layer under a name that is taken is an error.
    let layer = lab.layer("other");
    lab.state.create(Kind::Active, &key, "", none()).unwrap();
    lab.state.applied(&key, &layer).unwrap();
    assert!(matches!(lab.state.commit(&base, &key, none()), Err(Error::Exists(_))));
}

#[test]
fn labels_change_as_asked_and_stay_changed() {
    let mut lab = Lab::new();
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    lab.state
        .create(Kind::Active, "ns/1/c", "", labels(&[("a", "1"), ("containerd.io/gc.root", "x")]))
        .unwrap();
    let paths = ["labels.b".to_owned(), "labels.a".to_owned()];
    lab.state.update("ns/1/c", labels(&[("b", "2")]), &paths).unwrap();
    lab.reopen();
    let record = lab.state.stat("ns/1/c").unwrap();
    assert_eq!(record.labels, labels(&[("b", "2"), ("containerd.io/gc.root", "x")]));
    assert!((record.updated.seconds, record.updated.nanos) >= (record.created.seconds, record.created.nanos));
    lab.state.update("ns/1/c", labels(&[("c", "3")]), &[]).unwrap();
    assert_eq!(lab.state.stat("ns/1/c").unwrap().labels, labels(&[("c", "3")]));
}

#[test]
fn what_was_half_made_is_gone_after_a_start_and_what_is_unreadable_hurts_nothing_else() {
    let mut lab = Lab::new();
    let (base, _) = lab.unpack(1, None, "base");
    let snapshots = lab.dir.path().join("snapshots");
    std::fs::create_dir_all(snapshots.join("new-7/deep")).unwrap();
    std::fs::create_dir_all(snapshots.join("gone-3/fs")).unwrap();
    std::fs::create_dir_all(snapshots.join("99")).unwrap();
    std::fs::write(snapshots.join("99/meta.json"), "{").unwrap();
    lab.reopen();
    assert_eq!(lab.names(), [base]);
    assert!(!snapshots.join("new-7").exists() && !snapshots.join("gone-3").exists());
    // Its number is not used again.
    lab.state.create(Kind::Active, "ns/2/c", "", none()).unwrap();
    assert!(snapshots.join("100/meta.json").exists());
}

#[test]
fn many_at_once_get_what_each_alone_would_get() {
    let lab = Lab::new();
    let (base, chain) = lab.unpack(1, None, "base");
    let layer = lab.layer("top");
    let top = chain_id(Some(&chain), &layer.diff_id);
    std::thread::scope(|scope| {
        for number in 10..26 {
            let (lab, base) = (&lab, &base);
            scope.spawn(move || {
                let key = format!("ns/{number}/extract-1-x {top}");
                assert_eq!(lab.state.create(Kind::Active, &key, base, target(&top)).unwrap(), Made::Known);
                let name = format!("ns/{number}/c");
                lab.state.create(Kind::Active, &name, base, none()).unwrap();
                lab.state.cleanup().unwrap();
                lab.state.remove(&name).unwrap();
            });
        }
    });
    // One committed snapshot for the target, not sixteen.
    assert_eq!(lab.names().len(), 2);
    assert_eq!(lab.state.store().layers().unwrap().len(), 2);
}
