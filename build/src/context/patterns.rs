//! A list of patterns, where later ones may take back what earlier ones said.

use super::clean;
use super::glob::Glob;

/// A pattern that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pattern {pattern:?}: {why}")]
pub struct PatternError {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it, and what to write instead.
    pub why: String,
}

/// A list of patterns as `.dockerignore` and BuildKit's include and exclude patterns have it: the last one that means a
/// path decides, and one with `!` takes it out again. What is said about a folder holds for everything in it.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    list: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    glob: Glob,
    exception: bool,
    /// The folder or file that everything it means is or lies in; `None` where only comparing tells.
    stem: Option<String>,
}

/// Which patterns meant a folder: what is asked about its entries starts from there. The default is the root's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Below(Vec<bool>);

impl Patterns {
    /// Reads patterns; empty ones count for nothing.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut list = Vec::new();
        for given in patterns {
            let trimmed = given.trim();
            if trimmed.is_empty() {
                continue;
            }
            let cleaned = clean(trimmed);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some(text) => (true, text),
                None => (false, cleaned.as_str()),
            };
            let refuse = |why: String| PatternError { pattern: given.into(), why };
            if text.is_empty() {
                return Err(refuse("an exception needs a path after its !".into()));
            }
            list.push(Pattern { glob: Glob::parse(text).map_err(refuse)?, exception, stem: stem(text) });
        }
        Ok(Self { list })
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether the list means `path`, which is relative, clean and with `/` between its parts.
    pub fn matches(&self, path: &str) -> bool {
        self.list.iter().fold(false, |matched, pattern| {
            // Only what can change the answer is compared.
            let means = pattern.exception == matched
                && (pattern.glob.matches(path)
                    || path.match_indices('/').any(|(at, _)| pattern.glob.matches(&path[..at])));
            if means { !pattern.exception } else { matched }
        })
    }

    /// The same on a walk, for one entry of a folder that was asked about before: its parents are not asked about again.
    /// The second value is for the entry's own entries.
    ///
    /// As in the model the two differ in one case: an exception for a folder that no pattern had meant is forgotten
    /// below it, so `a/x` with `!a` leaves nothing of `a/x` on a walk.
    pub fn matches_in(&self, path: &str, folder: &Below) -> (bool, Below) {
        let mut matched = false;
        let below = self.list.iter().enumerate().map(|(at, pattern)| {
            let inherited = folder.0.get(at).copied().unwrap_or(false);
            let means = inherited || (pattern.exception == matched && pattern.glob.matches(path));
            if means {
                matched = !pattern.exception;
            }
            means
        });
        let below = Below(below.collect());
        (matched, below)
    }

    /// Whether a pattern (or, with `exceptions`, a pattern with `!`) may mean something in `folder`, by its text alone.
    /// A folder that nothing reaches into need not be read.
    pub(crate) fn reaches_into(&self, folder: &str, exceptions: bool) -> bool {
        self.list.iter().filter(|pattern| pattern.exception == exceptions).any(|pattern| {
            let Some(stem) = &pattern.stem else { return true };
            stem.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// A pattern without `/**` and `/*` at its end, if nothing special is left then.
fn stem(pattern: &str) -> Option<String> {
    let stem = pattern.strip_suffix("/**").unwrap_or(pattern);
    let stem = stem.strip_suffix("/*").unwrap_or(stem);
    (!stem.contains(['*', '[', ']', '?', '^', '\\'])).then(|| stem.to_owned())
}
