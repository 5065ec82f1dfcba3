//! Memory of a conversion stays below 256 MiB whatever comes in. One test only: the figure is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the lints' exception covers test functions only

mod support;

use std::io::{Read, Write};

use cloister_layer::{Converted, Error, Expected, Limits, convert};
use support::maker::{Fields, Maker, PLAIN, header, record};

/// A tar made while it is read: `entry` appends entry `n` to the buffer, or nothing after the last.
struct Endless<F> {
    entry: F,
    next: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<F: FnMut(u64, &mut Vec<u8>)> Read for Endless<F> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            (self.entry)(self.next, &mut self.buffer);
            self.next += 1;
        }
        let len = out.len().min(self.buffer.len() - self.at);
        out[..len].copy_from_slice(&self.buffer[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

fn run(limits: &Limits, entry: impl FnMut(u64, &mut Vec<u8>) + Send) -> Result<Converted, Error> {
    let file = tempfile::tempfile().unwrap();
    let blob = Endless { entry, next: 0, buffer: Vec::new(), at: 0 };
    convert(blob, &Expected::default(), &file, limits, &|_| {})
}

/// Largest resident size of this process so far, MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn a_million_entries_and_bombs_fit_in_256_mib() {
    let limits = Limits::default();
    let done = run(&limits, |n, out| {
        if n < 1_000_000 {
            let name = format!("usr/share/folder-{}/file-number-{n}", n / 1000);
            out.extend(header(b'0', name.as_bytes(), b"", 0, &PLAIN, (0, 0)));
        }
    });
    assert_eq!(done.unwrap().entries, 1_000_000);
    println!("a million entries: {} MiB", peak());

    let error = run(&limits, |n, out| {
        let name = [format!("{n:x}/").as_bytes(), &[b'n'; 90]].concat();
        out.extend(header(b'0', &name, b"", 0, &PLAIN, (0, 0)));
    });
    assert!(error.unwrap_err().to_string().contains("metadata_bytes"));
    println!("entries without end: {} MiB", peak());

    let error = run(&limits, |n, out| {
        let value = [n.to_le_bytes().as_slice(), &[7; 60_000]].concat();
        let maker = Maker::new().pax("SCHILY.xattr.user.bomb", &value);
        out.extend(maker.with(Fields { ..PLAIN }).file(format!("{n:x}").as_bytes(), b"").bytes);
    });
    assert!(error.unwrap_err().to_string().contains("metadata_bytes"));
    println!("attributes without end: {} MiB", peak());

    let error = run(&limits, |n, out| {
        let maker = Maker::new().pax("GNU.sparse.size", b"1099511627776").pax("GNU.sparse.map", b"512,1");
        out.extend(maker.file(format!("{n:x}").as_bytes(), b"1").bytes);
    });
    assert!(error.unwrap_err().to_string().contains("metadata_bytes"));
    println!("sparse files without end: {} MiB", peak());

    let error = run(&limits, |n, out| match n {
        0 => out.extend(Maker::new().global(&record("SCHILY.xattr.user.a", &[b'x'; 15_000])).bytes),
        n => out.extend(header(b'0', format!("{n:x}").as_bytes(), b"", 0, &PLAIN, (0, 0))),
    });
    assert!(error.unwrap_err().to_string().contains("metadata_bytes"));
    println!("one attribute for all: {} MiB", peak());

    let zeros = vec![0; 8 << 20];
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gz.write_all(&zeros).unwrap();
    let gz = gz.finish().unwrap();
    let zstd = zstd::stream::encode_all(&zeros[..], 1).unwrap();
    let low = Limits { ratio_floor: 64 << 20, ..Limits::default() };
    for bomb in [gz, zstd] {
        let error = run(&low, |_, out| out.extend_from_slice(&bomb));
        assert!(error.unwrap_err().to_string().contains("ratio"));
    }
    println!("bombs: {} MiB", peak());
    assert!(peak() < 256, "{} MiB", peak());
}
