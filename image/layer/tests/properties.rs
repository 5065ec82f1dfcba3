//! Random layers against a model: what the kernel shows must be what the rules say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the lints' exception covers test functions only

mod support;

use std::collections::BTreeMap;

use cloister_layer::Digest;
use proptest::collection::vec;
use proptest::prelude::*;
use support::kernel::{fsck, mounted, walk};
use support::maker::{Fields, Maker};

#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
    Hardlink(usize),
    Device(bool, u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Item {
    path: Vec<&'static [u8]>,
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: i64,
    nanos: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn item() -> impl Strategy<Value = Item> {
    let names: [&[u8]; 8] =
        [b"a", b"b", b"!first", b"-", b".hidden", b"\xff\xfe", b"a name of some length", &[b'q'; 255]];
    let kind = prop_oneof![
        4 => vec(any::<u8>(), 0..1500).prop_map(Kind::File),
        4 => Just(Kind::Dir),
        2 => vec(1..=255u8, 1..600).prop_map(Kind::Symlink),
        2 => any::<usize>().prop_map(Kind::Hardlink),
        1 => (any::<bool>(), 1..4096u32, 0..1_048_576u32).prop_map(|(block, a, b)| Kind::Device(block, a, b)),
        1 => Just(Kind::Fifo),
    ];
    let xattrs = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => proptest::collection::btree_map(
            proptest::sample::select(vec![b"trusted.t".to_vec(), b"security.s".to_vec(), b"trusted.long-name".to_vec()]),
            vec(any::<u8>(), 0..700),
            1..3,
        ),
    ];
    let times = (any::<i32>().prop_map(|t| i64::from(t) * 4), 0..1_000_000_000u32);
    let ids = (0..u32::MAX - 1, 0..u32::MAX - 1);
    (vec(proptest::sample::select(names.to_vec()), 1..5), kind, 0..0o10000u16, ids, times, xattrs).prop_map(
        |(path, kind, mode, (uid, gid), (mtime, nanos), xattrs)| Item {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            nanos,
            xattrs,
        },
    )
}

/// Path to (index of the item that made the inode, or none for an implied directory).
type Model = BTreeMap<Vec<u8>, Option<usize>>;

/// The model after all items, and the tar of those that could be applied.
fn model(items: &[Item]) -> (Model, Vec<u8>) {
    let mut model = Model::from([(Vec::new(), None)]);
    let mut maker = Maker::new();
    let is_dir = |made: &Option<usize>| made.is_none_or(|item| matches!(items[item].kind, Kind::Dir));
    for (index, item) in items.iter().enumerate() {
        let path = item.path.join(&b'/');
        let parents: Vec<_> = (1..item.path.len()).map(|n| item.path[..n].join(&b'/')).collect();
        if parents.iter().any(|parent| model.get(parent).is_some_and(|made| !is_dir(made))) {
            continue;
        }
        let mut made = Some(index);
        let mut target = Vec::new();
        if let Kind::Hardlink(choice) = item.kind {
            let files: Vec<_> = model.iter().filter(|(_, made)| !is_dir(made)).collect();
            let Some((name, inode)) = files.get(choice % files.len().max(1)) else { continue };
            (target, made) = ((*name).clone(), **inode);
        }
        let time = format!("{}.{:09}", item.mtime, item.nanos);
        let (seconds, nanos) = (item.mtime, item.nanos);
        let time = if seconds < 0 && nanos > 0 {
            format!("-{}.{:09}", -seconds - 1, 1_000_000_000 - nanos)
        } else {
            time
        };
        maker = maker.pax("mtime", time.as_bytes()).with(Fields {
            mode: item.mode.into(),
            uid: item.uid,
            gid: item.gid,
            mtime: 0,
        });
        for (name, value) in &item.xattrs {
            maker = maker.pax(&format!("SCHILY.xattr.{}", name.escape_ascii()), value);
        }
        maker = match &item.kind {
            Kind::File(data) => maker.file(&path, data),
            Kind::Dir => maker.dir(&path),
            Kind::Symlink(target) => maker.symlink(&path, target),
            Kind::Hardlink(_) => maker.hardlink(&path, &target),
            Kind::Device(block, major, minor) => {
                maker.node(if *block { b'4' } else { b'3' }, &path, *major, *minor)
            }
            Kind::Fifo => maker.node(b'6', &path, 0, 0),
        };
        for parent in parents {
            model.entry(parent).or_insert(None);
        }
        if !(matches!(item.kind, Kind::Dir) && model.get(&path).is_some_and(is_dir)) {
            let below = [&path[..], b"/"].concat();
            model.retain(|name, _| !name.starts_with(&below));
        }
        model.insert(path, made);
    }
    (model, maker.end())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_shows_what_the_rules_say(items in vec(item(), 1..80)) {
        let (model, tar) = model(&items);
        let (file, done) = support::converted(&tar).unwrap();
        fsck(&file);
        let tree = mounted(&file, walk);
        prop_assert_eq!(tree.keys().collect::<Vec<_>>(), model.keys().collect::<Vec<_>>());
        let dirs = model.values().filter(|made| made.is_none_or(|item| matches!(items[item].kind, Kind::Dir))).count();
        let mut files: Vec<_> = model.values().flatten().filter(|item| !matches!(items[**item].kind, Kind::Dir)).collect();
        files.sort();
        files.dedup();
        prop_assert_eq!(done.inodes as usize, dirs + files.len());
        for (path, made) in &model {
            let seen = &tree[path];
            let Some(made) = made else {
                prop_assert_eq!((seen.mode, seen.uid, seen.gid, seen.mtime), (0o40755, 0, 0, (0, 0)));
                continue;
            };
            let item = &items[*made];
            prop_assert_eq!((seen.uid, seen.gid, seen.mtime), (item.uid, item.gid, (item.mtime, i64::from(item.nanos))));
            prop_assert_eq!(&seen.xattrs, &item.xattrs);
            let names = model.iter().filter(|(_, other)| **other == Some(*made)).count() as u64;
            let (kind, rdev) = match &item.kind {
                Kind::File(data) => {
                    prop_assert_eq!(seen.data, Some(Digest::of(data)));
                    (0o100_000, (0, 0))
                }
                Kind::Dir => (0o040_000, (0, 0)),
                Kind::Symlink(target) => {
                    prop_assert_eq!(seen.target.as_ref(), Some(target));
                    (0o120_000, (0, 0))
                }
                Kind::Device(block, major, minor) => (if *block { 0o060_000 } else { 0o020_000 }, (*major, *minor)),
                Kind::Fifo | Kind::Hardlink(_) => (0o010_000, (0, 0)),
            };
            let mode = if kind == 0o120_000 { 0o777 } else { u32::from(item.mode) };
            prop_assert_eq!((seen.mode, seen.rdev), (kind | mode, rdev));
            if kind != 0o040_000 {
                prop_assert_eq!(seen.nlink, names);
            }
        }
    }

    #[test]
    fn inflate_undoes_every_way_of_deflating(
        pieces in vec((any::<u8>(), 1..3000usize, any::<bool>()), 0..60),
        level in 0..10u32,
    ) {
        // A tar whose one file mixes runs and noise; every byte of it is checked through the diff ID.
        let mut state = 1u32;
        let mut data = Vec::new();
        for (byte, len, noise) in pieces {
            for _ in 0..len {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                data.push(if noise { (state >> 24) as u8 & byte } else { byte });
            }
        }
        let tar = Maker::new().file(b"f", &data).end();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        std::io::Write::write_all(&mut gz, &tar).unwrap();
        let (_, done) = support::converted(&gz.finish().unwrap()).unwrap();
        prop_assert_eq!(done.diff_id, Digest::of(&tar));
    }
}
