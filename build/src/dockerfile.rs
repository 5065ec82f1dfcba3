//! The images a Dockerfile begins from, found without BuildKit: those it may ask for are offered to a builder that has no
//! network.
//!
//! Reads as much of the language as that takes (Dockerfile reference: FROM, ARG, COPY --from, RUN --mount=from=…): comments,
//! continued lines, the `escape` directive, heredocs, variables. What it can't make out it leaves to BuildKit, which then
//! names the image it misses.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a Dockerfile that are read.
const MAX: usize = 4 << 20;

/// References to images outside the Dockerfile, each once, in the order they appear. `args` are the build's arguments, which
/// replace the defaults of `ARG` lines before the first stage.
pub fn images(text: &str, args: &BTreeMap<String, String>) -> Vec<String> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    let mut stages: BTreeSet<String> = BTreeSet::new();
    let mut found: Vec<String> = Vec::new();
    let mut add = |stages: &BTreeSet<String>, name: String| {
        let known = stages.contains(&name.to_lowercase()) || name.bytes().all(|byte| byte.is_ascii_digit());
        if !known && !name.is_empty() && name != "scratch" && !found.contains(&name) {
            found.push(name);
        }
    };
    let mut in_stage = false;
    for line in instructions(text) {
        let mut words = line.split_ascii_whitespace();
        let instruction = words.next().unwrap_or_default().to_ascii_uppercase();
        match instruction.as_str() {
            "ARG" if !in_stage => {
                for word in words {
                    let (name, default) = word.split_once('=').unwrap_or((word, ""));
                    let value = match args.get(name) {
                        Some(given) => given.clone(),
                        None => expand(unquote(default), &variables),
                    };
                    variables.insert(name.to_owned(), value);
                }
            }
            "FROM" => {
                in_stage = true;
                let mut words = words.skip_while(|word| word.starts_with("--"));
                let Some(image) = words.next() else { continue };
                add(&stages, expand(unquote(image), &variables));
                if let (Some(word), Some(name)) = (words.next(), words.next())
                    && word.eq_ignore_ascii_case("as")
                {
                    stages.insert(name.to_lowercase());
                }
            }
            "COPY" | "ADD" | "RUN" => {
                for flag in words.take_while(|word| word.starts_with("--")) {
                    let from = match (flag.strip_prefix("--from="), flag.strip_prefix("--mount=")) {
                        (Some(from), _) => Some(from),
                        (None, Some(mount)) => mount.split(',').find_map(|part| part.strip_prefix("from=")),
                        (None, None) => None,
                    };
                    if let Some(from) = from {
                        add(&stages, unquote(from).to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// Whole instructions: continued lines joined, comments and heredocs left out.
fn instructions(text: &str) -> Vec<String> {
    let text = text.get(..MAX).unwrap_or(text).trim_start_matches('\u{feff}');
    let escape = escape(text);
    let mut all = Vec::new();
    let mut line = String::new();
    let mut lines = text.lines();
    while let Some(raw) = lines.next() {
        let trimmed = raw.trim();
        // Also in the middle of a continued line.
        if trimmed.starts_with('#') || (trimmed.is_empty() && !line.is_empty()) {
            continue;
        }
        if let Some(part) = trimmed.strip_suffix(escape) {
            line.push_str(part);
            line.push(' ');
            continue;
        }
        line.push_str(trimmed);
        for end in heredocs(&line) {
            // Tabs before its end are allowed after `<<-`; looking for both is enough here.
            lines.by_ref().find(|inside| inside.trim_start_matches('\t') == end);
        }
        all.push(std::mem::take(&mut line));
    }
    if !line.is_empty() {
        all.push(line);
    }
    all
}

/// The `escape` directive, which stands among the first comments.
fn escape(text: &str) -> char {
    for line in text.lines() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            break;
        };
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

/// The words that end the heredocs of an instruction, in order.
fn heredocs(line: &str) -> Vec<String> {
    let upper = line.get(..4).unwrap_or_default().to_ascii_uppercase();
    if !(upper.starts_with("RUN") || upper == "COPY" || upper.starts_with("ADD")) {
        return Vec::new();
    }
    line.split_ascii_whitespace()
        .filter_map(|word| word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<"))
        .map(|word| unquote(word.trim_start_matches('-')))
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn unquote(word: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = word.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    word
}

/// `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:+instead}`.
fn expand(word: &str, variables: &BTreeMap<String, String>) -> String {
    let value = |name: &str| variables.get(name).map_or("", String::as_str);
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some((inner, behind)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            let (name, operator, word) = match inner.find([':', '-', '+']) {
                Some(at) => {
                    let (name, tail) = inner.split_at(at);
                    let tail = tail.strip_prefix(':').unwrap_or(tail);
                    (name, tail.chars().next(), tail.get(1..).unwrap_or_default())
                }
                None => (inner, None, ""),
            };
            let set = value(name);
            match operator {
                Some('-') if set.is_empty() => out.push_str(word),
                Some('+') if set.is_empty() => {}
                Some('+') => out.push_str(word),
                _ => out.push_str(set),
            }
            rest = behind;
        } else {
            let length =
                after.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
            let (name, behind) = after.split_at(length);
            out.push_str(value(name));
            rest = behind;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        images(text, &BTreeMap::new())
    }

    #[test]
    fn stages_and_scratch_are_no_images() {
        let text = "FROM debian:12 AS Base\nFROM scratch\nCOPY --from=base /a /a\nCOPY --from=0 /b /b\n\
            COPY --link --from=registry.example/tools:1 /c /c\nFROM base\nRUN --mount=type=bind,from=other,target=/m true\n";
        assert_eq!(found(text), ["debian:12", "registry.example/tools:1", "other"]);
    }

    #[test]
    fn arguments_before_the_first_stage_name_images() {
        let text = "ARG VERSION=12\nARG NAME=\"debian\" FULL=$NAME:${VERSION}\nFROM --platform=$BUILDPLATFORM ${FULL}\n\
            FROM ${OTHER:-alpine}-x\nFROM a${VERSION:+b}\nARG VERSION=99\nFROM $NAME:$VERSION\n";
        assert_eq!(found(text), ["debian:12", "alpine-x", "ab"]);
        let args = BTreeMap::from([("VERSION".to_owned(), "13".to_owned())]);
        assert_eq!(images(text, &args), ["debian:13", "alpine-x", "ab"]);
    }

    #[test]
    fn continued_lines_comments_and_heredocs_are_read_as_buildkit_does() {
        let text = "# escape=`\n# FROM no\nFROM `\n  # in between\n\n  debian `\n  AS x\nRUN <<EOF cat <<-'TWO'\nFROM no1\nEOF\nFROM no2\n\tTWO\nfrom last\n";
        assert_eq!(found(text), ["debian", "last"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "(FROM|ARG|COPY --from=|RUN <<|[$\\{}:+#=\\n \\\\`a-z\u{e9}-])*") {
            let _ = found(&text);
        }
    }
}
