//! Layers made to do harm: each is refused with one line that names what is at fault, or is harmless.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the lints' exception covers test functions only

mod support;

use std::io::Write;

use cloister_layer::{Digest, Error, Expected, Limits, convert};
use support::maker::{Fields, Maker, PLAIN, header, record, seal};
use support::{converted, converted_within};

fn refused(tar: Vec<u8>, wanted: &str) {
    refused_within(tar, &Limits::default(), wanted);
}

fn refused_within(blob: Vec<u8>, limits: &Limits, wanted: &str) {
    let error = match converted_within(&blob, limits) {
        Ok((_, done)) => panic!("{wanted:?} expected, converted to {done:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(wanted), "{error:?} does not contain {wanted:?}");
    assert!(!error.contains('\n') && error.len() < 600, "{error:?}");
}

fn new() -> Maker {
    Maker::new()
}

#[test]
fn paths_that_lead_out() {
    for path in ["../x", "a/../../x", "..", "a/..", "/../x", "./../x"] {
        refused(new().file(path.as_bytes(), b"").end(), r#"": the path contains "..""#);
    }
    refused(new().pax("path", b"").entry(b'0', b"", b"", 0, b"", (0, 0)).end(), "the name is empty");
    refused(new().symlink(b"./", b"x").end(), "the root can only be a directory");
    refused(
        new().file(b"f", b"").file(b"f/x", b"").end(),
        r#""f/x": the path leads through something that is not"#,
    );
    refused(new().symlink(b"a", b"b").symlink(b"b", b"a").file(b"a/x", b"").end(), "too many symlinks");
    refused(new().file(&[b'n'; 256], b"").end(), "longer than 255 bytes");
    refused(new().file(&b"d/".repeat(300), b"").end(), "path_depth limit of 256");
    refused(new().file(&b"d/////".repeat(900), b"").end(), "path_bytes limit of 4096");
    refused(new().symlink(b"s", &[b't'; 4096]).end(), "path_bytes limit");
    refused(new().symlink(b"s", b"").end(), "symlink target is empty");
}

#[test]
fn symlinks_never_lead_out_of_the_layer() {
    let tar =
        new().symlink(b"up", b"../../../../..").symlink(b"abs", b"/etc").file(b"up/abs/passwd", b"x").end();
    let tree = support::kernel::seen(&converted(&tar).unwrap().0);
    let names: Vec<_> = tree.keys().map(|name| name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["", "abs", "etc", "etc/passwd", "up"]);
}

#[test]
fn hardlinks_to_what_is_not_there() {
    let base = || new().dir(b"d").file(b"f", b"").file(b".wh.w", b"");
    for (target, wanted) in [
        ("nothing", r#"layer entry "l": hardlink target "nothing" is not in this layer"#),
        ("f/x", "is not in this layer"),
        ("l", "is not in this layer"),
        ("d", r#""d" is a directory"#),
        ("/", "is a directory"),
        ("w", r#""w" is a whiteout"#),
        ("../etc/passwd", r#""../etc/passwd" is not a path inside the layer"#),
        ("d/../f", "is not a path inside the layer"),
    ] {
        refused(base().hardlink(b"l", target.as_bytes()).end(), wanted);
    }
    refused(base().entry(b'1', b"l", b"", 0, b"", (0, 0)).end(), "is not a path inside the layer");
}

#[test]
fn whiteouts_of_what_must_not_be_named() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        refused(new().file(name.as_bytes(), b"").end(), "not a valid whiteout name");
    }
    refused(new().dir(b".wh./").end(), "not a valid whiteout name");
    refused(new().file(b".wh.a/b", b"").end(), "the path leads through a whiteout name");
    refused(new().node(b'3', b"zero", 0, 0).end(), r#""zero": character device 0:0 is reserved"#);
    refused(new().node(b'3', b"big", 4096, 0).end(), "the device number is out of range");
}

#[test]
fn headers_that_lie() {
    let mut broken = new().file(b"f", b"data").end();
    broken[0] ^= 1;
    refused(broken, "damaged at byte 0: header checksum does not match");
    refused(new().entry(b'Z', b"f", b"", 0, b"", (0, 0)).end(), "\"f\": entry type 'Z' is not supported");
    refused(new().entry(b'M', b"f", b"", 0, b"", (0, 0)).end(), "entry type 'M' is not supported");
    refused(new().entry(b'0', b"f", b"", u64::MAX >> 1, b"", (0, 0)).end(), "uncompressed_bytes limit");
    refused(new().entry(b'0', b"f", b"", 1 << 63, b"", (0, 0)).end(), "the size is out of range");
    refused(new().pax("size", b"99999999999999999999").file(b"f", b"").end(), "the PAX size is out of range");
    refused(new().pax("size", b"1048576").file(b"f", b"x").end(), "the tar ends inside the data of an entry");
    refused(
        new().with(Fields { uid: u32::MAX, ..PLAIN }).file(b"f", b"").end(),
        "the user ID is out of range",
    );
    refused(new().pax("gid", b"4294967295").file(b"f", b"").end(), "the group ID is out of range");
    refused(new().pax("mtime", b"yesterday").file(b"f", b"").end(), "is not a valid number");
    refused(new().pax("path", b"a\0b").file(b"f", b"").end(), "NUL");
    let mut negative = header(b'0', b"f", b"", 0, &PLAIN, (0, 0));
    negative[124..136].fill(0xff);
    seal(&mut negative);
    refused(new().raw(&negative).end(), r#""f": the size is out of range"#);
    refused(
        new()
            .raw(&header(b'x', b"p", b"", 9, &PLAIN, (0, 0)))
            .raw_padded(b"8 path=x\n")
            .file(b"f", b"")
            .end(),
        "malformed PAX header",
    );
    refused(
        new().raw(&header(b'x', b"p", b"", 9, &PLAIN, (0, 0))).raw_padded(b"9 path=x\n").end(),
        "not followed by an entry",
    );
    refused(
        new().raw(&header(b'L', b"p", b"", 2, &PLAIN, (0, 0))).raw_padded(b"x\0").end(),
        "not followed by an entry",
    );
    refused(new().raw(&header(b'x', b"p", b"", 2 << 20, &PLAIN, (0, 0))).end(), "pax_bytes");
    refused(new().global(&record("comment", &[b'c'; 20_000])).end(), "pax_bytes");
}

#[test]
fn streams_that_end_wrongly() {
    let tar = new().file(b"f", &[5; 3000]).end();
    refused(Vec::new(), "the tar is empty");
    refused(tar[..100].to_vec(), "the tar ends inside a header");
    refused(tar[..2000].to_vec(), "the tar ends inside the data of an entry");
    refused([&tar[..], b"x"].concat(), "data follows the end-of-archive marker");
    refused([&tar[..tar.len() - 512], &tar].concat(), "a single zero block stands between entries");
    assert!(converted(&tar[..tar.len() - 1024]).is_ok(), "the marker may be missing");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&tar).unwrap();
    let gz = gz.finish().unwrap();
    for cut in 0..gz.len() {
        assert!(converted(&gz[..cut]).is_err(), "gzip cut at {cut} of {}", gz.len());
    }
    refused([&gz[..], b"garbage"].concat(), "not valid gzip: other data follows");
    assert!(converted(&[&gz[..], &[0; 100]].concat()).is_ok(), "zeros may follow");
    let mut sum = gz.clone();
    sum[gz.len() - 8] ^= 1;
    refused(sum, "not valid gzip: the checksum in the trailer is wrong");
    let zstd = zstd::stream::encode_all(&tar[..], 1).unwrap();
    for cut in 0..zstd.len() {
        assert!(converted(&zstd[..cut]).is_err(), "zstd cut at {cut} of {}", zstd.len());
    }
    assert!(converted(&[&zstd[..], b"garbage"].concat()).is_err());
    refused(b"BZh91AY&SY".to_vec(), "bzip2: not supported for layers");
    refused(b"\xfd7zXZ\0".to_vec(), "xz: not supported for layers");
}

#[test]
fn a_stream_that_stops_names_the_entry_it_stopped_in() {
    let tar = new().file(b"first", b"").file(b"big\n", &[5; 3000]).file(b"after", b"").end();
    let last = r#"; the last entry read is "big\n""#;
    refused(tar[..2000].to_vec(), &format!("inside the data of an entry{last}"));
    refused(tar[..4200].to_vec(), &format!("inside a header{last}"));
    refused([&tar[..2000], &[7; 60_000]].concat(), &format!("header checksum does not match{last}"));
    let noise: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tar = new().file(b"first", b"").file(b"noise", &noise).file(b"zeros", &[0; 8 << 20]).end();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&tar).unwrap();
    let gz = gz.finish().unwrap();
    refused(
        gz[..gz.len() / 2].to_vec(),
        "not valid gzip: it ends too early; the last entry read is \"noise\"",
    );
    let limits = |uncompressed_bytes, ratio| Limits {
        uncompressed_bytes,
        ratio,
        ratio_floor: 2 << 20,
        ..Limits::default()
    };
    let last = r#"; the last entry read is "zeros""#;
    refused_within(gz.clone(), &limits(64 << 30, 4), &format!("(limit ratio){last}"));
    let stopped = new().file(b"first", b"").file(b"zeros", &[0; 8 << 20]).entry(
        b'L',
        b"l",
        b"",
        900 << 10,
        &[b'l'; 900 << 10],
        (0, 0),
    );
    refused_within(stopped.end(), &limits(17 << 19, 256), &format!("(limit uncompressed_bytes){last}"));
}

#[test]
fn digests_and_sizes_that_lie() {
    let tar = new().file(b"f", b"x").end();
    let (right, wrong) = (Digest::of(&tar), Digest::of(b""));
    let size = tar.len() as u64;
    let check = |expected: Expected| {
        let file = tempfile::tempfile().unwrap();
        let result = convert(&tar[..], &expected, &file, &Limits::default(), &|_| {});
        if result.is_err() {
            let mut head = [0; 4096];
            let _ = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0);
            assert_eq!(head, [0; 4096], "a refused layer must not have a superblock");
        }
        result
    };
    assert!(check(Expected { digest: Some(right), size: Some(size), diff_id: Some(right) }).is_ok());
    let error = check(Expected { digest: Some(wrong), ..Expected::default() }).unwrap_err();
    assert!(matches!(error, Error::BlobDigest { expected, found } if expected == wrong && found == right));
    for size in [size - 1, size + 1, 0] {
        let error = check(Expected { size: Some(size), ..Expected::default() }).unwrap_err();
        assert!(matches!(error, Error::BlobSize { expected, .. } if expected == size));
    }
    let error = check(Expected { diff_id: Some(wrong), ..Expected::default() }).unwrap_err();
    assert!(matches!(error, Error::DiffId { .. }));
}

#[test]
fn sparse_maps_that_lie() {
    let sparse = |map: &[u8], size: &[u8]| {
        new().pax("GNU.sparse.size", size).pax("GNU.sparse.numblocks", b"1").pax("GNU.sparse.map", map)
    };
    refused(sparse(b"0,5", b"4").file(b"s", b"12345").end(), "ends beyond the file");
    refused(sparse(b"0,4", b"9").file(b"s", b"12345").end(), "do not add up");
    refused(sparse(b"0,3,1,2", b"9").file(b"s", b"12345").end(), "number of segments is wrong");
    refused(sparse(b"18446744073709551615,5", b"9").file(b"s", b"12345").end(), "out of range");
    refused(sparse(b"0", b"9").file(b"s", b"").end(), "an offset has no length");
    let one =
        || new().pax("GNU.sparse.major", b"1").pax("GNU.sparse.minor", b"0").pax("GNU.sparse.realsize", b"9");
    refused(one().file(b"s", b"1\n").end(), "longer than the data");
    refused(one().file(b"s", &[b'1'; 512]).end(), "not a valid number");
    refused(one().file(b"s", &[b'\n'; 512]).end(), "not a valid number");
    refused(new().global(&record("GNU.sparse.map", b"0,1")).end(), "a sparse map for all entries");
}

#[test]
fn every_limit_is_kept() {
    let tar = || new().file(b"a", &[1; 5000]).pax("SCHILY.xattr.user.a", &[7; 900]).file(b"b/c", b"").end();
    let zeros = zstd::stream::encode_all(&vec![0; 4 << 20][..], 1).unwrap();
    let d = Limits::default;
    for (blob, limits, wanted) in [
        (tar(), Limits { compressed_bytes: 4096, ..d() }, "compressed_bytes"),
        (tar(), Limits { uncompressed_bytes: 4096, ..d() }, "uncompressed_bytes"),
        (tar(), Limits { entries: 1, ..d() }, "more than 1 entries (limit entries)"),
        (
            tar(),
            Limits { path_depth: 1, ..d() },
            r#"layer entry "b/c": the path_depth limit of 1 is exceeded"#,
        ),
        (tar(), Limits { path_bytes: 2, ..d() }, "path_bytes"),
        (tar(), Limits { xattr_bytes: 500, ..d() }, r#"layer entry "b/c": the xattr_bytes limit of 500"#),
        (tar(), Limits { pax_bytes: 500, ..d() }, "pax_bytes"),
        (tar(), Limits { metadata_bytes: 200, ..d() }, "metadata_bytes"),
        (
            zeros.clone(),
            Limits { ratio_floor: 1 << 20, ..d() },
            "bytes of tar per compressed byte (limit ratio)",
        ),
        (zeros, Limits { zstd_window_log: 10, ..d() }, "zstd"),
    ] {
        refused_within(blob, &limits, wanted);
    }
}

/// Random damage to good tars, compressed and not: an error or a file system, never a panic or a hang.
#[test]
fn random_damage_is_survived() {
    let tar = new()
        .pax("SCHILY.xattr.user.a", b"1")
        .pax("GNU.sparse.map", b"0,2,1024,3")
        .pax("GNU.sparse.size", b"2000")
        .file(b"sparse", b"12345")
        .file(b"dir/file", &[3; 700])
        .hardlink(b"link", b"dir/file")
        .symlink(b"sym", b"dir")
        .file(b"sym/.wh.x", b"")
        .entry(b'L', b"././@LongLink", b"", 151, &[b'l'; 151], (0, 0))
        .file(b"short", b"")
        .end();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&tar).unwrap();
    let seeds = [tar.clone(), gz.finish().unwrap(), zstd::stream::encode_all(&tar[..], 3).unwrap()];
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let limits = Limits { uncompressed_bytes: 16 << 20, ..Limits::default() };
    for round in 0..3000 {
        let mut blob = seeds[round % seeds.len()].clone();
        for _ in 0..=random(4) {
            let at = random(blob.len());
            match random(4) {
                0 => blob[at] ^= 1 << random(8),
                1 => blob[at] = random(256) as u8,
                2 => blob.truncate(at.max(1)),
                _ => {
                    let from = random(blob.len());
                    let len = random(600).min(blob.len() - from.max(at));
                    blob.copy_within(from..from + len, at);
                }
            }
        }
        // Checksums hide everything behind them, so most rounds repair them.
        if round % seeds.len() == 0 && round % 4 != 0 {
            for block in blob.as_chunks_mut::<512>().0 {
                if &block[257..262] == b"ustar" {
                    seal(block);
                }
            }
        }
        if let Ok((file, _)) = converted_within(&blob, &limits)
            && round % 60 == 0
        {
            support::kernel::fsck(&file);
        }
    }
}
