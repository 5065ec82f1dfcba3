//! One pattern of a `.dockerignore` or of BuildKit, as moby/patternmatcher reads it: Go's `filepath.Match` with `**`.

use std::iter::Peekable;
use std::str::Chars;

/// A pattern, ready to be compared with cleaned, relative paths.
#[derive(Clone, Debug)]
pub(crate) enum Glob {
    /// The path itself.
    Exact(String),
    /// Everything that starts with it: `docs/**`.
    Prefix(String),
    /// Everything that ends with it: `**/docs`, `**.md`.
    Suffix(String),
    /// The rest.
    Parts(Vec<Part>),
}

/// One state of the automaton: what it takes of a path, and so which states follow.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// This character.
    Char(char),
    /// `?`: one character but `/`.
    One,
    /// `*`: any number of characters but `/`.
    Many,
    /// `[a-z]`, `[^a-z]`: one character of these ranges, or of none of them.
    Class { negated: bool, ranges: Vec<(char, char)> },
    /// `**` before the end: either `Folders` or nothing.
    MaybeFolders,
    /// Any number of characters up to and with a `/`. `**` takes no line break, unlike `*`.
    Folders,
    /// `**` at the end: everything.
    Rest,
    /// A `^` outside of brackets beside other special characters: the start of the path. An accident of how the
    /// model writes its expressions, but patterns mean what they mean there.
    Start,
}

impl Glob {
    /// Reads a cleaned pattern.
    pub(crate) fn parse(pattern: &str) -> Result<Self, String> {
        #[derive(PartialEq)]
        enum Kind {
            Exact,
            Prefix,
            Suffix,
            Parts,
        }
        let mut kind = Kind::Exact;
        let mut parts = Vec::new();
        let mut chars = pattern.chars().peekable();
        let mut first = true;
        while let Some(char) = chars.next() {
            match char {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        parts.extend([Part::MaybeFolders, Part::Folders]);
                        kind = Kind::Parts;
                    } else if kind == Kind::Exact {
                        kind = Kind::Prefix;
                    } else {
                        parts.push(Part::Rest);
                        kind = Kind::Parts;
                    }
                    if first {
                        kind = Kind::Suffix;
                    }
                }
                '^' => parts.push(Part::Start),
                '*' | '?' | '[' | ']' | '\\' => {
                    parts.push(match char {
                        '*' => Part::Many,
                        '?' => Part::One,
                        '[' => class(&mut chars)?,
                        '\\' => Part::Char(escaped(&mut chars)?),
                        other => Part::Char(other),
                    });
                    kind = Kind::Parts;
                }
                other => parts.push(Part::Char(other)),
            }
            first = false;
        }
        Ok(match kind {
            Kind::Exact => Self::Exact(pattern.into()),
            Kind::Prefix => Self::Prefix(pattern[..pattern.len() - 2].into()),
            Kind::Suffix => Self::Suffix(pattern[2..].into()),
            Kind::Parts => Self::Parts(parts),
        })
    }

    /// Whether the whole of `path` is meant.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            // `**/a` means `a` too.
            Self::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            Self::Parts(parts) => run(parts, path),
        }
    }
}

/// Follows all states at once: time is the product of both lengths, whatever the pattern.
fn run(parts: &[Part], path: &str) -> bool {
    let mut now = vec![false; parts.len() + 1];
    now[0] = true;
    step_without_input(parts, &mut now, true);
    for char in path.chars() {
        let mut next = vec![false; parts.len() + 1];
        for (at, part) in parts.iter().enumerate().filter(|(at, _)| now[*at]) {
            match part {
                Part::Char(own) => next[at + 1] |= *own == char,
                Part::One => next[at + 1] |= char != '/',
                Part::Many => next[at] |= char != '/',
                Part::Class { negated, ranges } => {
                    let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&char));
                    next[at + 1] |= within != *negated;
                }
                Part::Folders => {
                    next[at] |= char != '\n';
                    next[at + 1] |= char == '/';
                }
                Part::Rest => next[at] |= char != '\n',
                Part::MaybeFolders | Part::Start => {}
            }
        }
        step_without_input(parts, &mut next, false);
        now = next;
    }
    now[parts.len()]
}

/// Marks the states that need no further character; they only lead forward.
fn step_without_input(parts: &[Part], states: &mut [bool], at_start: bool) {
    for (at, part) in parts.iter().enumerate() {
        if states[at] {
            match part {
                Part::Many | Part::Rest => states[at + 1] = true,
                Part::MaybeFolders => {
                    states[at + 1] = true;
                    states[at + 2] = true;
                }
                Part::Start => states[at + 1] |= at_start,
                _ => {}
            }
        }
    }
}

/// The character after a backslash.
fn escaped(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    match chars.next() {
        // The model hands these to its regular expressions, where they are classes or errors.
        Some(char) if char.is_ascii_alphanumeric() || !char.is_ascii() => {
            Err(format!("\\{char} is nothing that needs a backslash: leave it out"))
        }
        Some(char) => Ok(char),
        None => Err("nothing follows the last backslash".into()),
    }
}

/// What follows a `[`, up to and with its `]`.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<Part, String> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Part::Class { negated, ranges });
        }
        let low = member(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { member(chars)? } else { low };
        if low > high {
            return Err(format!("the range {low}-{high} is empty"));
        }
        ranges.push((low, high));
    }
}

/// One end of a range.
fn member(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    match chars.next() {
        None => Err("a [ has no ]".into()),
        Some('\\') => escaped(chars),
        Some(char @ ('-' | ']')) => Err(format!("{char} in brackets needs a \\ before it")),
        // Special even in brackets where the model translates them: refused rather than read differently.
        Some(char @ ('*' | '?')) => Err(format!("{char} in brackets needs a \\ before it")),
        Some('[') if chars.peek() == Some(&':') => Err("[: in brackets needs a \\ before it".into()),
        Some(char) => Ok(char),
    }
}
