//! Paths that a build asks for, and what the links on their way lead to (fsutil's `FollowLinks`).
//!
//! A link is never left to the kernel: it is read, and its target looked up from the context's root, where `..` ends.

use std::collections::{BTreeSet, HashSet};

use rustix::fs::FileType;

use super::error::shown;
use super::glob::Glob;
use super::tree::Tree;
use super::{ContextError, clean};

/// Links behind each other on the way of one path, as in Linux.
const MAX_LINKS: usize = 40;
/// Paths that all paths of a request may stand for.
const MAX_PATHS: usize = 1 << 14;

/// The paths themselves and all that their links lead to, sorted, without what lies in a folder that is there too.
/// `None` when the root is among them, which is everything.
///
/// A `*`, `?` or `[` in a path means all names of that folder. Other than in the model, a second path through the same link
/// is followed as well.
pub(crate) fn follow(tree: &Tree, paths: &[String]) -> Result<Option<Vec<String>>, ContextError> {
    let mut followed = Followed { tree, found: BTreeSet::new(), asked: HashSet::new() };
    for path in paths {
        followed.add(clean(&format!("./{path}")), 0)?;
    }
    Ok(distinct(followed.found))
}

/// Sorted paths without those in a folder before them; `None` when the root is among them.
pub(crate) fn distinct(paths: impl IntoIterator<Item = String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if path == "." {
            return None;
        }
        let inside = kept
            .last()
            .is_some_and(|last| path.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('/')));
        if !inside {
            kept.push(path);
        }
    }
    Some(kept)
}

struct Followed<'a> {
    tree: &'a Tree,
    found: BTreeSet<String>,
    asked: HashSet<String>,
}

impl Followed<'_> {
    fn add(&mut self, path: String, links: usize) -> Result<(), ContextError> {
        if self.asked.len() >= MAX_PATHS {
            return Err(ContextError::Links(path));
        }
        if links > MAX_LINKS || !self.asked.insert(path.clone()) {
            return Ok(());
        }
        let mut end = 0;
        loop {
            end = path[end..].find('/').map_or(path.len(), |at| end + at);
            let (here, rest) = (&path[..end], path[end..].trim_start_matches('/'));
            let targets = self.targets(here)?;
            if rest.is_empty() || !targets.is_empty() {
                self.found.insert(here.to_owned());
                for target in targets {
                    // Cleaned from the root, so that nothing climbs above it.
                    let target = clean(&format!("/{target}/{rest}"));
                    let target = target.trim_start_matches('/');
                    self.add(if target.is_empty() { ".".into() } else { target.into() }, links + 1)?;
                }
                return Ok(());
            }
            end += 1;
        }
    }

    /// Where the link at `path` leads to, from the root; or all links that its last part means.
    fn targets(&self, path: &str) -> Result<Vec<String>, ContextError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if !has_wildcards(name) {
            return Ok(self.target(path)?.into_iter().collect());
        }
        let Ok(glob) = Glob::parse(name) else { return Ok(Vec::new()) };
        let Ok(names) = self.tree.open_folder(folder).and_then(|folder| folder.names()) else {
            return Ok(Vec::new());
        };
        let mut targets = Vec::new();
        for name in names.ok_or(ContextError::TooMany)? {
            if let Some(name) = name.raw.to_str().ok().filter(|_| name.kind == FileType::Symlink)
                && glob.matches(name)
            {
                let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                targets.extend(self.target(&path)?);
            }
        }
        Ok(targets)
    }

    fn target(&self, path: &str) -> Result<Option<String>, ContextError> {
        let read = |error| ContextError::Read(path.to_owned(), error);
        let Some(target) = self.tree.link_target(path).map_err(read)? else { return Ok(None) };
        let target = target.into_string().map_err(|_| ContextError::NotUtf8(shown(path.as_bytes())))?;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Ok(Some(if target.starts_with('/') { target } else { format!("{folder}/{target}") }))
    }
}

/// Whether a part of a path means several names; a backslash takes that from the character after it.
fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::context::Context;

    fn followed(root: &std::path::Path, paths: &[&str]) -> Option<Vec<String>> {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        follow(Context::folder(root).unwrap().tree(), &paths).unwrap()
    }

    fn some(paths: &[&str]) -> Option<Vec<String>> {
        Some(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn links_are_followed_within_the_context() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("bar/baz")).unwrap();
        fs::write(at("bar/baz/data"), "").unwrap();
        symlink("bar", at("foo")).unwrap();
        symlink("/bar/baz", at("absolute")).unwrap();
        symlink("../../../../bar", at("bar/baz/up")).unwrap();
        symlink("loop-b", at("loop-a")).unwrap();
        symlink("loop-a", at("loop-b")).unwrap();
        symlink("grow/x", at("grow")).unwrap();
        symlink(".", at("self")).unwrap();
        for (asked, expected) in [
            (&["foo"][..], some(&["bar", "foo"])),
            (&["foo/baz/data"], some(&["bar/baz/data", "foo"])),
            // Both ends of one link.
            (&["foo/a", "foo/b"], some(&["bar/a", "bar/b", "foo"])),
            (&["absolute/data"], some(&["absolute", "bar/baz/data"])),
            (&["bar/baz/up/x"], some(&["bar/baz/up", "bar/x"])),
            (&["loop-a"], some(&["loop-a", "loop-b"])),
            (&["loop-a/x"], some(&["loop-a", "loop-b"])),
            (&["fo*"], some(&["bar", "fo*"])),
            (&["f*/baz/data"], some(&["bar/baz/data", "f*"])),
            (&["s*"], None),
            (&["missing/x"], some(&["missing/x"])),
            (&["bar", "bar/baz"], some(&["bar"])),
            (&["/bar/../bar/"], some(&["bar"])),
            (&["../bar"], some(&["../bar"])),
            (&["."], None),
            (&["self"], None),
            (&[], some(&[])),
        ] {
            assert_eq!(followed(root.path(), asked), expected, "{asked:?}");
        }
        assert!(followed(root.path(), &["grow"]).unwrap().contains(&"grow".to_owned()));
    }
}
