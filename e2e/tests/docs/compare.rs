//! What a page shows beside what comes: the same but for times, sizes, versions and ids.

use regex::Regex;

use crate::page::{Block, Page};

/// A line without what differs from run to run.
fn plain(line: &str) -> String {
    let rules = [
        (r"\b[0-9a-f]{12,64}\b", "ID"),
        (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} .*\b20[0-9]{2}\b", "DATE"),
        (r"\b[0-9]+(\.[0-9]+)? (ms|s|KiB|MiB|GiB|seconds|minutes|hours|days)\b( ago)?", "AMOUNT"),
        (r"\b[0-9]+\.[0-9]+\.[0-9]+[-0-9A-Za-z.]*", "VERSION"),
        (r"\s+", " "),
    ];
    let mut text = line.trim().to_owned();
    for (pattern, word) in rules {
        text = Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    text
}

/// What nobody can foresee: the order in which layers are done, and a warning that machines with virtualisation do not give.
const UNFORESEEN: [&str; 2] = ["layer ", " WARN the processor offers no virtualisation"];

/// The lines that count.
fn lines(text: &str) -> Vec<String> {
    let kept = text.lines().filter(|line| !UNFORESEEN.iter().any(|begin| line.starts_with(begin)));
    kept.map(plain).filter(|line| !line.is_empty()).collect()
}

/// The same, with what each command printed in the order of the alphabet: its two outputs come as they come.
fn sorted(text: &str) -> Vec<String> {
    let mut lines = lines(text);
    for printed in lines.chunk_by_mut(|_, next| !next.starts_with(['$', '#'])) {
        printed[1..].sort();
    }
    lines
}

/// Compares a block with what comes; with `CLOISTER_DOCS_WRITE` the page gets it instead.
pub fn with(page: &Page, block: &Block, came: &str) {
    if sorted(&block.text) == sorted(came) {
        return;
    }
    if std::env::var_os("CLOISTER_DOCS_WRITE").is_some() {
        page.replace(block, came);
        eprintln!("{} written", block.place);
        return;
    }
    panic!(
        "{} shows\n{}\nand what comes is\n{came}\nCLOISTER_DOCS_WRITE=1 writes it",
        block.place, block.text
    );
}

#[test]
fn times_sizes_and_ids_may_differ_and_nothing_else() {
    let same = |a: &str, b: &str| assert_eq!(lines(a), lines(b));
    same("  (0.320 s)\n", "(12.5 s)");
    same("layer 2035f8a10401: done (57.6 MiB)\nid 2035f8a10401 (57.6 MiB)", "id aaaaaaaaaaaa (1 MiB)");
    same("x   1102 days ago   3", "x 3 hours ago  3");
    same(
        "Linux 6.12.117-cloister #1 SMP Sat Nov 14 12:56:01 UTC 2026",
        "Linux 6.12.118-cloister #1 SMP Sun Nov 15 01:00:00 UTC 2026",
    );
    assert_ne!(lines("exit code 7"), lines("exit code 8"));
    assert_eq!(sorted("$ x\na\nb"), sorted("$ x\nb\na"));
    assert_ne!(sorted("$ x\na\n$ y\nb"), sorted("$ x\nb\n$ y\na"));
}
