//! A path in the first line, a `.dockerignore` after it: whatever they are, an answer, and the same one on a walk.
#![no_main]

use cloister_build::context::{Below, Patterns, clean, read_ignore_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (path, file) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let path = clean(&String::from_utf8_lossy(&path[..path.len().min(256)]));
    let Ok(lines) = read_ignore_file(file) else { return };
    let Ok(patterns) = Patterns::parse(lines.iter().map(String::as_str)) else { return };
    let matched = patterns.matches(&path);
    if path.starts_with('/') || lines.iter().any(|line| line.starts_with('!')) {
        return;
    }
    // Without exceptions a walk says the same; the two ways share no more than single patterns.
    let (mut walked, mut below) = (false, Below::default());
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        (walked, below) = patterns.matches_in(&path[..end], &below);
    }
    assert_eq!(walked, matched, "{path:?} {lines:?}");
});
