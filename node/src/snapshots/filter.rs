//! containerd's filter language, as far as it is used on snapshots.
//!
//! Source: the package documentation of containerd's `filters`. One filter is a list of selectors separated by commas that
//! all must match: a field path, or a field path, `==` or `!=`, and a value. Fields and values may be quoted as in Go.
//! Regular expressions (`~=`) are refused; containerd asks a snapshotter for none.

use super::record::Record;
use crate::error::{Error, Result};

/// Longest filter accepted, in bytes; labels themselves are at most 4096 bytes.
const MAX_LEN: usize = 16 << 10;

/// A parsed filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<Selector>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
}

impl Filter {
    /// Parses one filter; an empty one matches everything.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_LEN {
            return Err(Error::Invalid(format!("a filter of {} bytes is too long", text.len())));
        }
        let mut rest = Rest { text, all: text };
        let mut selectors = Vec::new();
        if text.is_empty() {
            return Ok(Self(selectors));
        }
        loop {
            selectors.push(rest.selector()?);
            if rest.text.is_empty() {
                return Ok(Self(selectors));
            }
            rest.expect(",")?;
        }
    }

    /// Whether the snapshot matches every selector.
    pub fn matches(&self, record: &Record) -> bool {
        self.0.iter().all(|selector| {
            let value = field(record, &selector.path);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value == Some(wanted),
                Test::NotEqual(other) => value.unwrap_or_default() != other,
            }
        })
    }
}

/// The field of a snapshot at `path`; `None` when it has none.
fn field<'r>(record: &'r Record, path: &[String]) -> Option<&'r str> {
    Some(match path {
        [name] if name == "name" => &record.name,
        [name] if name == "parent" => &record.parent,
        [name] if name == "kind" => record.kind.name(),
        [labels, key @ ..] if labels == "labels" => {
            return record.labels.get(&key.join(".")).map(String::as_str);
        }
        _ => return None,
    })
}

struct Rest<'t> {
    text: &'t str,
    all: &'t str,
}

impl<'t> Rest<'t> {
    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::NotEqual(self.value()?)
        } else if self.text.starts_with("~=") {
            return Err(self.bad("regular expressions are not supported"));
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        if self.text.starts_with('"') {
            return self.quoted();
        }
        let end =
            self.text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.text.len());
        self.bare(end, "a field is missing")
    }

    fn value(&mut self) -> Result<String> {
        if self.text.starts_with('"') {
            return self.quoted();
        }
        let end = self.text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.text.len());
        self.bare(end, "a value is missing")
    }

    fn bare(&mut self, end: usize, problem: &str) -> Result<String> {
        if end == 0 {
            return Err(self.bad(problem));
        }
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        Ok(word.to_owned())
    }

    /// A string in double quotes with Go's escapes (`strconv.Quote`).
    fn quoted(&mut self) -> Result<String> {
        let mut out = Vec::new();
        let mut chars = self.text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.text = &self.text[at + 1..];
                    return String::from_utf8(out).map_err(|_| self.bad("a quoted text is not UTF-8"));
                }
                '\\' => {
                    let escape = chars.next().map(|(_, c)| c);
                    let mut hex = |digits: usize| {
                        let text: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                        u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits)
                    };
                    let char = match escape {
                        Some(c @ ('"' | '\\' | '\'')) => Some(c),
                        Some('n') => Some('\n'),
                        Some('t') => Some('\t'),
                        Some('r') => Some('\r'),
                        Some('a') => Some('\x07'),
                        Some('b') => Some('\x08'),
                        Some('f') => Some('\x0c'),
                        Some('v') => Some('\x0b'),
                        // A byte, not a character.
                        Some('x') => {
                            let byte = hex(2).and_then(|value| u8::try_from(value).ok());
                            out.push(byte.ok_or_else(|| self.bad("a quoted text has a bad escape"))?);
                            continue;
                        }
                        Some('u') => hex(4).and_then(char::from_u32),
                        Some('U') => hex(8).and_then(char::from_u32),
                        _ => None,
                    };
                    let char = char.ok_or_else(|| self.bad("a quoted text has a bad escape"))?;
                    out.extend(char.encode_utf8(&mut [0; 4]).bytes());
                }
                c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        Err(self.bad("a quote is not closed"))
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.text.strip_prefix(token);
        self.text = rest.unwrap_or(self.text);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.bad("a comma is missing")) }
    }

    fn bad(&self, why: &str) -> Error {
        let at = self.all.len() - self.text.len();
        Error::Invalid(format!(
            "filter {:?}: {why} at byte {at}",
            self.all.chars().take(200).collect::<String>()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Kind, TARGET, Time};
    use super::*;
    use std::collections::BTreeMap;

    fn record() -> Record {
        Record {
            name: "k8s.io/7/sha256:aa".into(),
            parent: "k8s.io/3/with \"quotes\"\n".into(),
            kind: Kind::Committed,
            created: Time::now(),
            updated: Time::now(),
            labels: BTreeMap::from([(TARGET.into(), "sha256:bb".into()), ("plain".into(), "x".into())]),
            layer: None,
            chain: None,
            host: false,
        }
    }

    #[test]
    fn containerds_own_questions_are_answered() {
        let ask = |text: &str| Filter::parse(text).unwrap().matches(&record());
        // core/metadata/snapshot.go, after a snapshotter says that the target exists.
        assert!(ask(
            r#"labels."containerd.io/snapshot.ref"==sha256:bb,parent=="k8s.io/3/with \"quotes\"\n""#
        ));
        assert!(!ask(r#"labels."containerd.io/snapshot.ref"==sha256:bb,parent=="""#));
        assert!(!ask(r#"labels."containerd.io/snapshot.ref"==sha256:cc"#));
        for text in [
            "",
            "name",
            "kind==committed",
            "kind!=view",
            "labels.plain==x",
            "labels.other!=y",
            "labels.plain",
        ] {
            assert!(ask(text), "{text}");
        }
        for text in
            ["labels.other", "nonsense", "name==x", "kind==active", "kind==committed,name==x", "labels"]
        {
            assert!(!ask(text), "{text}");
        }
        assert!(ask("name==\"k8s.io/7/\\x73ha256\\u003aaa\""));
    }

    #[test]
    fn what_is_no_filter_is_refused_in_one_line() {
        for text in [
            ",",
            "name==",
            "name=x",
            "==x",
            "name==x,",
            "name~=x",
            "labels.",
            "\"open",
            "name==\"\\q\"",
            "name x",
            "name==\"\\u12\"",
            "name==\"\\ud800\"",
            "name==\"\\xff\"",
            "labels.\"a\"b",
        ] {
            let error = Filter::parse(text).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{text}");
            assert!(!error.to_string().contains('\n'));
        }
        assert!(Filter::parse(&"x".repeat(MAX_LEN + 1)).is_err());
    }
}
