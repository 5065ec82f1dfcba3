//! Tests that documents name: each of them exists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cloister_e2e::lab::checkout;

use crate::page::{documents, spans};
use crate::words;

/// The sources of a room: a folder, or a file or folder of e2e/tests.
fn sources(room: &str) -> Vec<PathBuf> {
    let tests = checkout().join("e2e/tests");
    let mut files = Vec::new();
    for path in [checkout().join(room), tests.join(room), tests.join(format!("{room}.rs"))] {
        collect(&path, &mut files);
    }
    files
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() && path.extension().is_some_and(|end| end == "rs") {
        files.push(path.to_owned());
    }
    for entry in fs::read_dir(path).into_iter().flatten() {
        collect(&entry.unwrap().path(), files);
    }
}

/// Whether a source has a test of this name: a function with the attribute, or one that a list of cases names.
fn has_test(source: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let lines: Vec<&str> = source.lines().collect();
    let defined = lines.iter().position(|line| {
        line.split_once("fn ")
            .is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|after| !after.starts_with(is_part)))
    });
    let Some(line) = defined else { return false };
    let attributes = &lines[line.saturating_sub(4)..line];
    let is_test = attributes.iter().any(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
    let listed = source.match_indices(name).filter(|&(at, _)| {
        !source[..at].ends_with(is_part) && !source[at + name.len()..].starts_with(is_part)
    });
    is_test || (source.contains("cases!") && listed.count() > 1)
}

/// What is wrong with `ROOM: [MODULE::…]NAME`.
pub fn check(test: &str) -> Result<(), String> {
    let (room, name) = test.split_once(": ").ok_or(format!("{test:?} is no `ROOM: TEST`"))?;
    let name = name.rsplit("::").next().unwrap_or_default();
    let there = sources(room).iter().any(|file| has_test(&fs::read_to_string(file).unwrap(), name));
    match there {
        true => Ok(()),
        false => Err(format!("{room} has no test {name}")),
    }
}

/// What is wrong with a filter of cargo-nextest: binaries and parts of names in it exist.
pub fn filter(filter: &str) -> Result<(), String> {
    for (kind, rest) in
        filter.match_indices('(').map(|(at, _)| (filter[..at].rsplit(' ').next(), &filter[at + 1..]))
    {
        let word = rest.split(')').next().unwrap_or_default();
        match kind {
            Some("binary") if sources_of_binary(word).is_empty() => {
                return Err(format!("there is no test binary {word}"));
            }
            Some("test") => {
                let part = word.rsplit("::").next().unwrap_or_default();
                if !code().contains(part) {
                    return Err(format!("there is no test with {part} in its name"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// All code of the checkout.
fn code() -> &'static str {
    static CODE: OnceLock<String> = OnceLock::new();
    CODE.get_or_init(|| {
        let listed = Command::new("git").args(["ls-files", "*.rs"]).current_dir(checkout()).output().unwrap();
        let files = String::from_utf8(listed.stdout).unwrap();
        files.lines().filter_map(|file| fs::read_to_string(checkout().join(file)).ok()).collect()
    })
}

fn sources_of_binary(name: &str) -> Vec<PathBuf> {
    let tests = checkout().join("e2e/tests");
    let mut files = Vec::new();
    collect(&tests.join(name), &mut files);
    collect(&tests.join(format!("{name}.rs")), &mut files);
    files
}

#[test]
fn every_test_that_is_named_exists() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in documents() {
        let mut in_table = false;
        for (number, line) in page.prose() {
            let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
            match line.starts_with('|') {
                true if matches!(cells.last(), Some(&"test" | &"tests")) => in_table = true,
                true if in_table && !line.starts_with("| ---") => {
                    for (what, found) in named(cells.last().unwrap_or(&"")) {
                        count += 1;
                        wrong.extend(found.err().map(|why| format!("{}:{number}: {what}: {why}", page.path)));
                    }
                }
                true => {}
                false => in_table = false,
            }
            for span in spans(line).into_iter().filter(|span| span.starts_with("docs: ")) {
                wrong.extend(check(span).err());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "{count} tests");
}

/// What the cell of a table names: `ROOM: TEST`, further tests of that room, files and targets.
fn named(cell: &str) -> Vec<(String, Result<(), String>)> {
    let mut room = "";
    let mut all = Vec::new();
    for span in spans(cell) {
        let found = match span.split_once(' ') {
            Some(("make", target)) => words::make(target),
            Some((first, _)) if first.ends_with(':') => {
                room = first.trim_end_matches(':');
                check(span)
            }
            Some(_) => Err("what is that?".to_owned()),
            None if span.contains('/') => match checkout().join(span).exists() {
                true => Ok(()),
                false => Err("no such file".to_owned()),
            },
            None => check(&format!("{room}: {span}")),
        };
        all.push((span.to_owned(), found));
    }
    if all.is_empty() {
        all.push((cell.to_owned(), Err("names no test".to_owned())));
    }
    all
}
