//! Files made to deceive: each is refused with the inode's number, quickly, and nothing panics.

use std::io::Write;

use cloister_layer::erofs::format::{
    Dirent, Inode, Layout, NULL_ADDR, S_IFDIR, S_IFLNK, S_IFREG, SuperBlock,
};
use cloister_view::merged::{Limits, Merged};
use cloister_view::reader::Image;
use cloister_view::{ext4, tar};

const BLOCK: usize = 512;
/// The inode area starts here, data blocks lie behind it.
const META: usize = 4;
const DATA: u32 = 64;

/// A file system put together by hand.
struct Raw(Vec<u8>);

impl Raw {
    fn new() -> Self {
        let sb = SuperBlock { block_bits: 9, meta_blkaddr: META as u32, ..Default::default() };
        let mut raw = Self(vec![0; 128 * BLOCK]);
        raw.0[1024..1152].copy_from_slice(&sb.encode());
        raw
    }

    fn inode(&mut self, nid: usize, inode: Inode, behind: &[u8]) -> &mut Self {
        let at = META * BLOCK + nid * 32;
        self.0[at..at + 64].copy_from_slice(&inode.encode());
        self.0[at + 64..at + 64 + behind.len()].copy_from_slice(behind);
        self
    }

    /// Directory `nid` with its names in data block `DATA + nid`.
    fn dir(&mut self, nid: usize, names: &[(&str, u64)]) -> &mut Self {
        let block = names_block(names);
        let at = (DATA as usize + nid) * BLOCK;
        self.0[at..at + block.len()].copy_from_slice(&block);
        self.inode(nid, inode(S_IFDIR | 0o755, block.len() as u64, DATA + nid as u32), &[])
    }

    fn open(&self) -> cloister_view::Result<Merged> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.0).unwrap();
        Merged::new(vec![Image::open(file, "hostile")?])
    }

    /// What happens when everything is read.
    fn verdict(&self) -> String {
        match self.open().and_then(|tree| read_all(&tree)) {
            Ok(()) => "accepted".into(),
            Err(error) => error.to_string(),
        }
    }
}

fn read_all(tree: &Merged) -> cloister_view::Result<()> {
    let limits = Limits { entries: 5000, data_bytes: 1 << 20 };
    tar::write(std::io::sink(), tree, limits)?;
    let options = ext4::Options { size: ext4::Size::Exact, uuid: [0; 16], label: Vec::new(), limits };
    ext4::write(&tempfile::tempfile().unwrap(), tree, &options).map(|_| ())
}

fn inode(mode: u16, size: u64, union: u32) -> Inode {
    let layout = Layout::FlatPlain;
    let (uid, gid, mtime, mtime_nsec) = (0, 0, 0, 0);
    Inode { layout, mode, xattr_icount: 0, size, union, ino: 1, uid, gid, mtime, mtime_nsec, nlink: 1 }
}

fn names_block(names: &[(&str, u64)]) -> Vec<u8> {
    let mut offset = names.len() * 12;
    let mut block = Vec::new();
    for (name, nid) in names {
        block.extend(Dirent { nid: *nid, name_offset: offset as u16, file_type: 0 }.encode());
        offset += name.len();
    }
    names.iter().for_each(|(name, _)| block.extend(name.as_bytes()));
    block
}

/// A root with one entry `x`, inode 4.
fn with(child: Inode, behind: &[u8]) -> Raw {
    let mut raw = Raw::new();
    raw.dir(0, &[(".", 0), ("..", 0), ("x", 4)]).inode(4, child, behind);
    raw
}

#[test]
fn a_proper_file_made_by_hand_is_accepted() {
    assert_eq!(with(inode(S_IFREG | 0o644, 700, DATA + 4), &[]).verdict(), "accepted");
}

#[test]
fn trees_with_cycles_and_shared_folders_are_refused() {
    let mut raw = Raw::new();
    raw.dir(0, &[(".", 0), ("..", 0), ("a", 4)]).dir(4, &[(".", 4), ("..", 0), ("b", 4)]);
    assert_eq!(raw.verdict(), "hostile: inode 4: its parent is inode 0 by its own account");
    raw.dir(4, &[(".", 4), ("..", 0), ("b", 0)]);
    assert_eq!(raw.verdict(), "hostile: inode 0: its parent is inode 0 by its own account");
    raw.dir(4, &[(".", 4), ("b", 8)]).inode(8, inode(S_IFREG, 0, 0), &[]);
    assert_eq!(raw.verdict(), "hostile: inode 4: it has no entry for its parent");
}

#[test]
fn names_that_multiply_end_at_the_limit() {
    let mut raw = Raw::new();
    for level in 0..30usize {
        let (this, parent, next) = (level * 2, level.saturating_sub(1) as u64 * 2, level as u64 * 2 + 2);
        raw.dir(this, &[(".", this as u64), ("..", parent), ("a", next), ("b", next)]);
    }
    raw.dir(60, &[(".", 60), ("..", 58)]);
    assert_eq!(raw.verdict(), "the layers hold more than 5000 names");
}

#[test]
fn positions_outside_the_file_are_refused() {
    let beyond = "its data reaches beyond the end of the file";
    let check = |inode: Inode, behind: &[u8], why: &str| {
        assert_eq!(with(inode, behind).verdict(), format!("hostile: inode 4: {why}"));
    };
    check(inode(S_IFREG, 513, 127), &[], beyond);
    check(inode(S_IFREG, i64::MAX as u64, 0), &[], beyond);
    check(inode(S_IFREG, u64::MAX, 0), &[], "its time or size is out of range");
    check(inode(S_IFREG, 1, u32::MAX), &[], beyond);
    check(
        Inode { xattr_icount: u16::MAX, ..inode(S_IFREG, 0, 0) },
        &[],
        "its attributes reach beyond the file",
    );
    let inline = Inode { layout: Layout::FlatInline, ..inode(S_IFREG, 511, 0) };
    check(inline, &[], "its inline data crosses a block");
    let chunks = |size, format| Inode { layout: Layout::ChunkBased, ..inode(S_IFREG, size, format) };
    check(chunks(1 << 40, 0), &[], beyond);
    check(chunks(512, 0), &128u32.to_le_bytes(), "a chunk lies beyond the end of the file");
    check(chunks(512, 0x20), &[0, 0, 0, 0, 128, 0, 0, 0], "a chunk lies beyond the end of the file");
    check(inode(S_IFLNK, 4096, DATA), &[], "a symlink target of 4096 bytes");
    check(inode(S_IFLNK, 0, DATA), &[], "a symlink target of 0 bytes");
    check(inode(S_IFLNK, 5, DATA + 20), &[], "its symlink target contains NUL");
    check(inode(0o644, 0, 0), &[], "mode 0o644 has no file type");

    let mut raw = Raw::new();
    raw.dir(0, &[(".", 0), ("..", 0), ("x", 1 << 40)]);
    assert_eq!(raw.verdict(), "hostile: inode 1099511627776: it lies outside the file");
    raw.dir(0, &[(".", 0), ("..", 0), ("x", u64::MAX)]);
    assert!(raw.verdict().contains("it lies outside the file"));
}

#[test]
fn what_is_not_supported_is_said() {
    let check = |inode: Inode, behind: &[u8], what: &str| {
        let expected = format!("hostile: inode 4: {what} is not supported");
        assert_eq!(with(inode, behind).verdict(), expected);
    };
    let chunks = |format| Inode { layout: Layout::ChunkBased, ..inode(S_IFREG, 512, format) };
    check(chunks(0x40), &[], "chunk format 0x40");
    check(chunks(0x20), &[0, 0, 1, 0, 0, 0, 0, 0], "data on another device");
    let mut raw = with(inode(S_IFREG, 0, 0), &[]);
    raw.0[META * BLOCK + 4 * 32] = 1 << 1 | 1;
    assert_eq!(raw.verdict(), "hostile: inode 4: compressed data is not supported");
    for (at, byte, what) in [
        (12, 16, "a block size of 2^16 bytes"),
        (80, 0x20, "incompatible feature set 0x20"),
        (86, 1, "more than one device"),
        (90, 1, "a directory block size of its own"),
    ] {
        let mut raw = Raw::new();
        raw.0[1024 + at] = byte;
        assert_eq!(raw.verdict(), format!("hostile: superblock: {what} is not supported"));
    }
    assert!(Raw(vec![0; 4096]).verdict().contains("magic number"));
    assert!(Raw(vec![0; 1100]).verdict().contains("beyond the end of the file"));
}

#[test]
fn attributes_cut_short_or_doubled_are_refused() {
    let check = |icount: u16, area: &[u8], why: &str| {
        let child = Inode { xattr_icount: icount, ..inode(S_IFREG, 0, 0) };
        let verdict = with(child, area).verdict();
        assert!(verdict.starts_with("hostile: inode 4: ") && verdict.contains(why), "{verdict}");
    };
    let area = |entries: &[u8]| [&[0u8; 12][..], entries].concat();
    check(1, &[0, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0], "list of shared attributes is cut short");
    check(2, &area(&[200, 1, 0, 0]), "an attribute is cut short");
    check(2, &area(&[0, 1, 255, 255]), "an attribute is cut short");
    check(2, &area(&[0, 1, 0, 0]), "an attribute has no proper name");
    check(3, &area(&[1, 99, 0, 0, b'x', 0, 0, 0]), "the attribute name prefix 99");
    check(5, &area(&[1, 1, 0, 0, b'x', 0, 0, 0, 1, 1, 1, 0, b'x', b'y', 0, 0]), "it has an attribute twice");
    check(2, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255], "reaches beyond the end of the file");
}

#[test]
fn directory_blocks_that_lie_are_refused() {
    let check = |names: &[(&str, u64)], why: &str| {
        let mut raw = Raw::new();
        raw.dir(0, names).inode(4, inode(S_IFREG, 0, 0), &[]);
        let verdict = raw.verdict();
        assert!(verdict.starts_with("hostile: inode 0: ") && verdict.contains(why), "{verdict}");
    };
    check(&[(".", 0), ("..", 0), ("b", 4), ("a", 4)], "its names are not in order");
    check(&[(".", 0), ("..", 0), ("a", 4), ("a", 4)], "its names are not in order");
    check(&[(".", 0), ("..", 0), ("a/b", 4)], "\"a/b\" is not a file name");
    check(&[(".", 0), ("..", 0), ("a", 4), ("", 4)], "\"\" is not a file name");
    check(&[(".", 0), ("..", 0), ("\0", 4)], "is not a file name");
    let long = "n".repeat(256);
    check(&[(".", 0), ("..", 0), (&long, 4)], "is not a file name");
    for offset in [0u16, 1, 13, 511, 512, 65535] {
        let mut raw = Raw::new();
        raw.dir(0, &[(".", 0), ("..", 0)]);
        let at = DATA as usize * BLOCK + 8;
        raw.0[at..at + 2].copy_from_slice(&offset.to_le_bytes());
        assert!(raw.verdict().contains("puts its names at"), "{offset}");
    }
}

#[test]
fn a_bomb_of_shared_blocks_ends_at_the_limit() {
    // 4 GiB of contents in chunks that are all the same block.
    let mut raw = with(Inode { layout: Layout::ChunkBased, ..inode(S_IFREG, 2 << 20, 0) }, &[]);
    let table = META * BLOCK + 4 * 32 + 64;
    raw.0[table..table + 4096 * 4].chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&DATA.to_le_bytes()));
    assert_eq!(raw.verdict(), "the layers hold more than 1048576 bytes of file contents");
    // A hole of 2⁶² bytes costs nothing in tar and is too big for ext4.
    let hole = Inode { layout: Layout::ChunkBased, ..inode(S_IFREG, 1 << 40, 31) };
    assert_eq!(with(hole, &NULL_ADDR.to_le_bytes()).verdict(), "accepted");
}

/// A generator whose numbers depend on nothing but its seed (xorshift64).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn thousands_of_damaged_files_never_panic_or_hang() {
    let chunks = [64u32, NULL_ADDR, 66, 67].map(u32::to_le_bytes).concat();
    let xattrs = [&[0; 12][..], &[1, 1, 4, 0, b'x', 1, 2, 3, 4, 0, 0, 0]].concat();
    let mut raw = with(Inode { layout: Layout::ChunkBased, ..inode(S_IFREG, 2048, 0) }, &chunks);
    raw.dir(0, &[(".", 0), ("..", 0), ("d", 20), ("l", 30), ("x", 4), ("y", 40)])
        .dir(20, &[(".", 20), ("..", 0), ("f", 4)])
        .inode(30, Inode { layout: Layout::FlatInline, ..inode(S_IFLNK, 6, 0) }, b"target")
        .inode(40, Inode { xattr_icount: 4, nlink: 3, ..inode(S_IFREG, 9, DATA) }, &xattrs);
    assert_eq!(raw.verdict(), "accepted");
    let (mut state, mut accepted) = (0x9e37_79b9_7f4a_7c15, 0);
    let start = std::time::Instant::now();
    for _ in 0..4000 {
        let mut copy = Raw(raw.0.clone());
        for _ in 0..1 + random(&mut state) % 6 {
            // Metadata and directory blocks are where damage matters.
            let ranges = [(1024, 128), (META * BLOCK, 1600), (DATA as usize * BLOCK, 64), (84 * BLOCK, 64)];
            let (start, len) = ranges[random(&mut state) as usize % ranges.len()];
            let at = start + random(&mut state) as usize % len;
            copy.0[at] = match random(&mut state) % 3 {
                0 => random(&mut state) as u8,
                1 => copy.0[at] ^ 1 << (random(&mut state) % 8),
                _ => 0xff,
            };
        }
        if random(&mut state).is_multiple_of(16) {
            copy.0.truncate(random(&mut state) as usize % raw.0.len());
        }
        accepted += u32::from(copy.verdict() == "accepted");
    }
    // Damage that matters and damage that does not both occur.
    assert!((100..3900).contains(&accepted), "{accepted}");
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}
